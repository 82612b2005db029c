"""What a server and the programs beside it on its machine go by without asking each other."""

import os
import socket
import struct
from pathlib import Path

SO_PEERPIDFD = 77
"""From asm-generic/socket.h (Linux 6.5): a pidfd of the very process that connected."""

_CREDENTIALS = struct.Struct("iII")  # struct ucred


def default_state_dir() -> Path:
    """Names the folder of host arenas and of the journal of a server that runs as this user and is told no other."""
    return Path(f"/dev/shm/statepool-{os.getuid()}")  # noqa: S108 — the server makes it 0700, and locks it


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """Tells the process id, 0 if it is not visible here, and the user at the other end of a Unix socket.

    Raises:
        OSError: The kernel does not tell.
    """
    pid, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid, uid
