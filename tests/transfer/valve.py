"""A network between two servers that stops after so many bytes, until it is told what becomes of it."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from service.servers import DEADLINE_SECONDS

_CHUNK_BYTES = 65536


class Valve:
    """Passes what clients say on, and what the server answers up to a number of bytes.

    Attributes:
        target: Where clients connect.
    """

    def __init__(self, path: Path, server: Path, nbytes: int) -> None:
        """Listens.

        Args:
            path: Socket for clients.
            server: Socket of the server.
            nbytes: What the server's answers may come to before they stop.
        """
        self.target = f"unix:{path}"
        self._server = server
        self._left = nbytes
        self._shut, self._open = threading.Event(), threading.Event()
        self._ends: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def wait_until_shut(self) -> None:
        """Waits until so many bytes have passed that no more do."""
        assert self._shut.wait(DEADLINE_SECONDS)

    def open(self) -> None:
        """Lets everything pass from now on."""
        self._open.set()

    def cut(self) -> None:
        """Breaks every connection; new ones are taken, and pass everything."""
        self.open()
        for end in self._ends:
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
                try:
                    server.connect(str(self._server))
                except OSError:  # the server is gone
                    client.close()
                    server.close()
                    continue
                self._ends += (client, server)
                for source, sink, counts in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._pass_on, args=(source, sink, counts), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, counts: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK_BYTES):
                if counts and not self._open.is_set():
                    self._left -= len(data)
                    if self._left < 0:
                        self._shut.set()
                        self._open.wait()
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()


@contextlib.contextmanager
def valve(folder: Path, server: Path, nbytes: int) -> Iterator[Valve]:
    """Runs a valve in front of a server's socket."""
    made = Valve(folder / "valve.sock", server, nbytes)
    try:
        yield made
    finally:
        made.close()
