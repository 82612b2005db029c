"""The process that listens on a Unix socket, as the kernel and /proc tell of it."""

import os
import re
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SO_PEERPIDFD = 77
"""From asm-generic/socket.h (Linux 6.5)."""

_CREDENTIALS = struct.Struct("iII")  # struct ucred
_ARENA = re.compile(r" (/.*)/rank\d+\.arena(?: \(deleted\))?$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Listener:
    """Whoever listens on a socket."""

    pid: int
    """Its process id in this process's pid namespace; 0: not visible from here."""
    uid: int
    """Its user."""
    has_pidfd: bool
    """Whether this kernel proves the death of a peer by a pidfd, whatever its pid namespace."""

    @classmethod
    def at(cls, path: Path) -> "Listener":
        """Asks the kernel who listens.

        Raises:
            OSError: Nobody does, or this process may not connect.
        """
        with socket.socket(socket.AF_UNIX) as stream:
            stream.connect(str(path))
            pid, uid, _ = _CREDENTIALS.unpack(stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            return cls(pid, uid, _has_pidfd())

    @property
    def state_dir(self) -> Path | None:
        """The folder of its host arenas, in its own file system; None: it has none, or may not be asked."""
        if not self.pid:
            return None
        with suppress(OSError):
            mapped = _ARENA.search(Path(f"/proc/{self.pid}/maps").read_text(encoding="utf-8"))
            return Path(mapped[1]) if mapped else None
        return None


def _has_pidfd() -> bool:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs, suppress(OSError):
        os.close(ours.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD))
        return True
    return False
