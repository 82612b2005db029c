"""Memory of another process, mapped into this one without a copy, and cut off again for good."""

import ctypes
import mmap
import os
import threading
import weakref

_libc = ctypes.CDLL(None, use_errno=True)  # its functions let go of the GIL
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int),
    *(ctypes.c_int, ctypes.c_int, ctypes.c_long),
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

_MAP_FIXED, _MAP_NORESERVE = 0x10, 0x4000
_MAP_FAILED = ctypes.c_void_p(-1).value
_POPULATE_READ, _POPULATE_WRITE = 22, 23  # linux/mman.h (Linux 5.14)
_POPULATE_BYTES = 2 * 2**20  # of one call: whoever maps something else meanwhile waits for it


class Mapping:
    """A shared mapping of a descriptor.

    A process that is forked from this one does not inherit it: it would write without being known.

    Attributes:
        buffer: The bytes, a ctypes array ``[nbytes]``; writing to it faults (SIGSEGV) where the mapping is read-only.
    """

    def __init__(self, descriptor: int, nbytes: int, *, read_only: bool) -> None:
        """Maps it; pages are filled in in the background.

        Args:
            descriptor: What to map from offset 0 on.
            nbytes: How much.
            read_only: Whether it can only be read.

        Raises:
            OSError: It cannot be mapped.
        """
        protection = mmap.PROT_READ if read_only else mmap.PROT_READ | mmap.PROT_WRITE
        self._nbytes = nbytes
        self._address = _map(None, nbytes, protection, mmap.MAP_SHARED, descriptor)
        _libc.madvise(self._address, nbytes, mmap.MADV_DONTFORK)
        self.buffer = (ctypes.c_ubyte * nbytes).from_address(self._address)
        weakref.finalize(self.buffer, _unmap, self._address, nbytes, os.getpid()).atexit = False
        self._closing = threading.Event()
        advice = _POPULATE_READ if read_only else _POPULATE_WRITE
        self._populating = threading.Thread(target=self._populate, args=(advice,), name="statepool-pages", daemon=True)
        self._populating.start()

    def detach(self) -> None:
        """Cuts the memory off: views that somebody still has see zeros of their own from now on, and write to those."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._populating.join()
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED | _MAP_NORESERVE
        _map(self._address, self._nbytes, mmap.PROT_READ | mmap.PROT_WRITE, private, -1)

    def _populate(self, advice: int) -> None:
        for start in range(0, self._nbytes, _POPULATE_BYTES):
            size = min(_POPULATE_BYTES, self._nbytes - start)
            if self._closing.is_set() or _libc.madvise(self._address + start, size, advice):
                return  # where the kernel is older, pages come at their first use


def _map(address: int | None, nbytes: int, protection: int, flags: int, descriptor: int) -> int:
    mapped: int = _libc.mmap(address, nbytes, protection, flags, descriptor, 0)
    if mapped == _MAP_FAILED:
        code = ctypes.get_errno()
        raise OSError(code, f"{nbytes} bytes cannot be mapped: {os.strerror(code)}")
    return mapped


def _unmap(address: int, nbytes: int, pid: int) -> None:
    if os.getpid() == pid:  # a forked process has something else there, or nothing
        _libc.munmap(address, nbytes)
