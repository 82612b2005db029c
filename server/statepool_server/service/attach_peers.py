"""The process at the other end of an attach socket: who it is, and the proof that it is dead."""

import asyncio
import contextlib
import fcntl
import os
import select
import socket
from pathlib import Path

from statepool.errors import PeerUntrustedError
from statepool.machine import SO_PEERPIDFD, peer_of

POLL_SECONDS = 0.2
"""How often a process that no pidfd watches is looked for."""


class DeathLock:
    """A lock (flock) that a process holds for as long as it lives: the kernel drops it with its last descriptor.

    Processes that are forked from it share the descriptor as they share the memory, so it outlives all of them. It is
    on a file, so that a server that comes after this one can look at it as well.
    """

    def __init__(self, path: Path) -> None:
        """Looks at the lock of a file, which is made if it is missing."""
        self._path = path
        self._ours = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def take(self) -> int:
        """Takes the lock for another process.

        Returns:
            The descriptor that holds it: to be handed over, and closed here.
        """
        theirs = os.open(self._path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(theirs, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(theirs)
            raise
        return theirs

    def is_released(self) -> bool:
        """Tells whether nobody has the descriptor any more."""
        try:
            fcntl.flock(self._ours, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Closes this side's own descriptor."""
        os.close(self._ours)

    def remove(self) -> None:
        """Removes the file: the process is gone."""
        self._path.unlink(missing_ok=True)


class Peer:
    """A process, known by more than its number, which the system gives to another when it is dead.

    Its death is proven by a pidfd where the kernel has it, else by its number and start time, unless it lives in
    another pid namespace; and in any case by the lock that it was given, which whatever it has forked holds as well.

    Attributes:
        pid: Its process id; 0: not visible from here.
        uid: Its user.
        started: When it started, in clock ticks since the boot; None: not visible from here.
    """

    def __init__(self, pid: int, uid: int, pidfd: int | None, started: int | None = None) -> None:
        self.pid = pid
        self.uid = uid
        self.started = start_time(pid) if started is None else started
        self._pidfd = pidfd

    @classmethod
    def of(cls, connection: socket.socket) -> "Peer":
        """Asks the kernel who has connected."""
        pid, uid = peer_of(connection)
        return cls(pid, uid, _pidfd(connection, pid))

    @classmethod
    def known(cls, pid: int, uid: int, started: int | None) -> "Peer":
        """Finds a process again that an earlier server knew; it may have ended long ago."""
        return cls(pid, uid, None, started)

    def is_same(self, other: "Peer") -> bool:
        """Tells whether two are one process."""
        return (self.pid, self.uid, self.started) == (other.pid, other.uid, other.started)

    def check_user(self) -> None:
        """Refuses processes of other users.

        Raises:
            PeerUntrustedError: It is one.
        """
        if self.uid != os.getuid():
            raise PeerUntrustedError(f"the process belongs to user {self.uid}, the server to {os.getuid()}")

    def is_dead(self, lock: DeathLock) -> bool:
        """Tells whether the process, and all that it has forked, is proven dead."""
        return self._has_ended() and lock.is_released()

    async def death(self, lock: DeathLock) -> None:
        """Waits until the process, and all that it has forked, is proven dead."""
        if self._pidfd is not None:
            await _readable(self._pidfd)
        while not self.is_dead(lock):  # noqa: ASYNC110 — no event tells of it
            await asyncio.sleep(POLL_SECONDS)

    def _has_ended(self) -> bool:
        """Tells whether nothing is to be seen of the process; of one that never was, there is nothing."""
        if self._pidfd is not None:
            watch = select.poll()
            watch.register(self._pidfd, select.POLLIN)
            return bool(watch.poll(0))
        return self.started is None or start_time(self.pid) != self.started

    def close(self) -> None:
        """Gives the descriptor back."""
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None


async def _readable(descriptor: int) -> None:
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(descriptor)


def start_time(pid: int) -> int | None:
    """Reads when a process started, in clock ticks since the boot; None: it is dead, or not visible."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before may hold anything
    return None if fields[0] in "ZX" else int(fields[19])


def _pidfd(connection: socket.socket, pid: int) -> int | None:
    with contextlib.suppress(OSError):  # an older kernel
        return connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
    with contextlib.suppress(OSError):  # one older still, or a process that is not visible
        return os.pidfd_open(pid)
    return None
