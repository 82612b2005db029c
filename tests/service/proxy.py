"""A proxy between a client and a server that does to every connection what networks and middle boxes do."""

import contextlib
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from service.servers import DEADLINE_SECONDS, until

_CHUNK_BYTES = 65536
_REMEMBERED = 8
"""Connections whose bytes are kept, to be said again."""
_MOST_BYTES = 2**20
_REPLAY_SECONDS = 1.0
"""How long the server may have nothing to answer before a replayed connection ends."""


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
        self._open: dict[socket.socket, socket.socket] = {}
        self._said: deque[bytearray] = deque(maxlen=_REMEMBERED)
        self._stalled_until = self._held_until = 0.0
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

    def half_close(self) -> None:
        """Tells one side of every connection that nothing more comes, and goes on passing on what it says."""
        with self._lock:
            for sink in list(self._open.values())[::2]:
                with contextlib.suppress(OSError):
                    sink.shutdown(socket.SHUT_WR)

    def replay(self) -> None:
        """Says to the server again, on a new connection, what a client has said on one of the last, and hangs up."""
        with self._lock:
            said = bytes(self._said[0]) if self._said else b""
            self._said.rotate(-1)
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as server:
            server.settimeout(_REPLAY_SECONDS)
            server.connect(str(self._server))
            server.sendall(said)
            while server.recv(_CHUNK_BYTES):
                continue

    def stall(self, seconds: float) -> None:
        """Passes nothing on for a while."""
        self._stalled_until = time.monotonic() + seconds

    def hold_answers(self, seconds: float) -> None:
        """Passes nothing on that the server says, for a while."""
        self._held_until = time.monotonic() + seconds

    @contextlib.contextmanager
    def losing_answers(self, is_enough: Callable[[], bool]) -> Iterator[None]:
        """Passes nothing on that the server says until a condition holds, and then breaks every connection."""
        self.hold_answers(DEADLINE_SECONDS)

        def lose() -> None:
            until(is_enough, "the server to do what nobody hears of")
            self.hold_answers(0.0)
            self.cut()

        losing = threading.Thread(target=lose)
        losing.start()
        yield
        losing.join()

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
                except OSError:  # the server is not there
                    server.close()
                    client.close()
                    continue
                said = bytearray()
                with self._lock:
                    self._said.append(said)
                for way in ((client, server, said), (server, client, None)):
                    threading.Thread(target=self._pass_on, args=way, daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, said: bytearray | None) -> None:
        with self._lock:
            self._open[source] = sink
        try:
            while data := source.recv(_CHUNK_BYTES):
                if said is not None and len(said) < _MOST_BYTES:
                    said += data
                goes_on_at = self._stalled_until if said is not None else max(self._stalled_until, self._held_until)
                time.sleep(max(0.0, goes_on_at - time.monotonic()))
                sink.sendall(data)
        except OSError:
            pass
        finally:
            with self._lock:
                self._open.pop(source, None)
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
