"""A proxy between a client and a server that can break every connection, as a network does."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

_CHUNK_BYTES = 65536


class Proxy:
    """Passes bytes on between Unix sockets.

    Attributes:
        target: Where clients connect.
    """

    def __init__(self, path: Path, server: Path) -> None:
        """Listens.

        Args:
            path: Socket for clients.
            server: Socket of the server.
        """
        self.target = f"unix:{path}"
        self._server = server
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Breaks every connection; new ones are taken at once."""
        with self._lock:
            for end in self._open:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Breaks every connection, and takes no more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(str(self._server))
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with self._lock:
            self._open.add(source)
        try:
            while data := source.recv(_CHUNK_BYTES):
                sink.sendall(data)
        except OSError:
            pass
        finally:
            with self._lock:
                self._open.discard(source)
            for end in (source, sink):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            source.close()


@contextlib.contextmanager
def between(folder: Path, server: Path) -> Iterator[Proxy]:
    """Runs a proxy in front of a server's socket."""
    proxy = Proxy(folder / "proxy.sock", server)
    try:
        yield proxy
    finally:
        proxy.close()
