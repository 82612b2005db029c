"""Arenas of host memory, the folder that they lie in, and the arenas of all ranks."""

import contextlib
import ctypes
import fcntl
import mmap
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from statepool.host import Bytes
from statepool.mounts import Mount
from statepool.units import format_bytes
from statepool_server.arena_types import Arena, ArenaError, Export

if TYPE_CHECKING:
    import torch

MADV_POPULATE_WRITE = 23
"""From linux/mman.h (Linux 5.14); makes all pages present at once."""

PIECE_BYTES = 256 * 2**20
"""What is taken at once: a fraction of a second's work."""


def _go_on() -> None:
    """Lets memory be taken to the end."""


class HostArena:
    """A file on tmpfs, mapped shared, so that other processes on the machine can map the same bytes."""

    def __init__(self, path: Path, nbytes: int, *, is_kept: bool = False, check: Callable[[], None] = _go_on) -> None:
        """Creates the file (in place of one that a dead server left), fills it with pages and maps it.

        Args:
            path: The file; its folder is private and locked (`StateDir`).
            nbytes: Size of the arena.
            is_kept: Whether the file that a server has left is mapped as it is instead; see `has_arenas`.
            check: Is called before each piece of it; what it raises ends the taking, and nothing new is left.

        Raises:
            ArenaError: The file system has not so much room.
            OSError: There is no file that could be kept.
        """
        self.path = path
        created = 0 if is_kept else os.O_CREAT | os.O_EXCL
        if not is_kept:
            path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | created, 0o600)
        try:
            if not is_kept:
                _reserve(descriptor, path, nbytes, check)
            self._map = mmap.mmap(descriptor, nbytes, mmap.MAP_SHARED)
            self._populate(check)
        except BaseException:
            if not is_kept:
                path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        self._memory: Bytes | None = np.frombuffer(self._map, np.uint8)

    @property
    def memory(self) -> Bytes:
        """The whole arena, uint8, ``[arena bytes]``."""
        if self._memory is None:
            raise ValueError("the arena is closed")
        return self._memory

    @property
    def tensor(self) -> "torch.Tensor":
        """The same bytes as a tensor."""
        import torch

        return torch.from_numpy(self.memory)

    @property
    def address(self) -> int:
        """Where it begins in this process."""
        return self.memory.ctypes.data

    def read(self, start: int, nbytes: int) -> Bytes:
        """Reads bytes: a view of them."""
        return self.memory[start : start + nbytes]

    def write(self, start: int, data: Bytes) -> None:
        """Writes bytes."""
        self.memory[start : start + len(data)] = data

    @property
    def export(self) -> Export:
        """How another process maps it: as a file."""
        return Export()

    def open_descriptor(self, *, read_only: bool) -> int:
        """Opens the file anew.

        Raises:
            OSError: There is no descriptor left.
        """
        return os.open(self.path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_NOFOLLOW | os.O_CLOEXEC)

    def close(self, *, keep: bool = False) -> None:
        """Removes the file, unless it is kept; the mapping goes with the last array that uses it."""
        self._memory = None
        if not keep:
            self.path.unlink(missing_ok=True)

    def _populate(self, check: Callable[[], None]) -> None:
        """Takes the pages, as far as the kernel and the file system can: others come at their first use."""
        with contextlib.suppress(OSError):
            self._map.madvise(mmap.MADV_HUGEPAGE)
        for start, nbytes in _pieces(len(self._map)):
            check()
            with contextlib.suppress(OSError):
                self._map.madvise(MADV_POPULATE_WRITE, start, nbytes)


class StateDir:
    """The private folder of one server: made if missing, refused if others may enter, locked while it is used."""

    def __init__(self, path: Path) -> None:
        """Opens and locks the folder.

        Raises:
            ArenaError: It is not a folder of this user alone, or another server uses it.
        """
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = path.lstat()
        except OSError as error:
            raise ArenaError(f"state-dir {path}: {error.strerror}") from error
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
            raise ArenaError(f"state-dir {path}: must be a folder that belongs to this user and has mode 0700")
        self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise ArenaError(f"state-dir {path}: another server uses it; give each its own --state-dir") from None

    def close(self) -> None:
        """Unlocks the folder."""
        os.close(self._lock)


def parse_devices(text: str, rank_count: int) -> tuple[str, ...]:
    """Reads ``cpu``, ``cuda:N`` (for all ranks) or ``cuda:N,M,…`` (one for each).

    Returns:
        A device per rank.

    Raises:
        ValueError: Another form, or as many devices as neither 1 nor the ranks.
    """
    if text == "cpu":
        return ("cpu",) * rank_count
    kind, _, rest = text.partition(":")
    numbers = rest.split(",")
    if kind != "cuda" or not all(number.isascii() and number.isdecimal() and len(number) < 4 for number in numbers):
        raise ValueError(f"device {text!r}: cpu, cuda:N or cuda:N,M,… is needed")
    if len(numbers) not in (1, rank_count):
        raise ValueError(f"device {text!r}: {len(numbers)} devices for {rank_count} ranks")
    devices = [f"cuda:{int(number)}" for number in numbers]
    return tuple(devices * rank_count if len(devices) == 1 else devices)


def is_in_memory(folder: Path) -> bool:
    """Tells whether a folder lies on tmpfs; where nobody can say, it is taken for granted."""
    try:
        mount = Mount.of(folder.stat().st_dev, "self")
    except OSError:
        return True
    return mount is not None and mount.kind in ("tmpfs", "ramfs", "hugetlbfs")


def has_arenas(nbytes: int, tp_ranks: Sequence[int], folder: Path) -> bool:
    """Tells whether a server has left the arenas of all ranks in a folder, and of that size."""
    paths = [_arena_path(folder, rank) for rank in tp_ranks]
    return all(path.is_file() and path.stat().st_size == nbytes for path in paths)


def open_arenas(
    nbytes: int,
    tp_ranks: Sequence[int],
    devices: Sequence[str],
    folder: Path,
    *,
    is_kept: bool = False,
    check: Callable[[], None] = _go_on,
) -> list[Arena]:
    """Opens one arena per rank; either all of them or none.

    Args:
        nbytes: Size of each.
        tp_ranks: The ranks.
        devices: Device of each.
        folder: Where host arenas are.
        is_kept: Whether those that a server has left there are used again.
        check: As of `HostArena`.

    Raises:
        ArenaError: The memory of one cannot be had.
    """
    arenas: list[Arena] = []
    try:
        for rank, device in zip(tp_ranks, devices, strict=True):
            if device == "cpu":
                arenas.append(HostArena(_arena_path(folder, rank), nbytes, is_kept=is_kept, check=check))
            else:
                from statepool_server.arena_cuda import open_cuda_arena  # imports torch

                arenas.append(open_cuda_arena(device, nbytes))
    except BaseException:
        for arena in arenas:
            arena.close(keep=is_kept)
        raise
    return arenas


def _arena_path(folder: Path, rank: int) -> Path:
    return folder / f"rank{rank}.arena"


def _pieces(nbytes: int) -> Iterator[tuple[int, int]]:
    """Divides so many bytes; where each piece begins, and how large it is."""
    return ((start, min(PIECE_BYTES, nbytes - start)) for start in range(0, nbytes, PIECE_BYTES))


def _reserve(descriptor: int, path: Path, nbytes: int, check: Callable[[], None]) -> None:
    """Takes the file's pages now: on a full tmpfs the first touch of a missing page would kill the process."""
    file_system = os.fstatvfs(descriptor)
    free = file_system.f_bavail * file_system.f_frsize
    available = min(free, _available_memory())
    if nbytes <= available:
        try:
            for start, size in _pieces(nbytes):
                check()
                os.posix_fallocate(descriptor, start, size)
            return
        except OSError:
            available = min(available, os.fstatvfs(descriptor).f_bavail * file_system.f_frsize)
    raise ArenaError(
        f"{path}: the arena needs {nbytes} bytes ({format_bytes(nbytes)}), {available} ({format_bytes(available)}) are "
        "available; use a smaller --memory or --blocks, enlarge the tmpfs, or put --state-dir elsewhere"
    )


def _available_memory() -> int:
    with Path("/proc/meminfo").open(encoding="ascii") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return ctypes.c_size_t(-1).value
