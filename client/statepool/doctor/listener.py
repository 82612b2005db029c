"""The process that listens on a Unix socket, as the kernel and /proc tell of it."""

import os
import re
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from statepool.machine import SO_PEERPIDFD, peer_of
from statepool.mounts import Folder

_ARENA = re.compile(r" ([0-9a-f]+):([0-9a-f]+) \d+ +(/.*)/rank\d+\.arena$", re.MULTILINE)


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
            return cls(*peer_of(stream), _has_pidfd())

    @property
    def arenas(self) -> Folder | None:
        """Where its host arenas lie, by its own mappings; None: it has none, or may not be asked."""
        with suppress(OSError):
            maps = Path(f"/proc/{self.pid}/maps").read_text(encoding="utf-8", errors="replace")
            if mapped := _ARENA.search(maps):
                return Folder(Path(mapped[3]), os.makedev(int(mapped[1], 16), int(mapped[2], 16)))
        return None


def _has_pidfd() -> bool:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs, suppress(OSError):
        os.close(ours.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD))
        return True
    return False
