"""What the C library does with memory that was given back."""

import ctypes

KEPT_BYTES = 64 * 2**20
"""Free memory that a heap may keep; of several heaps each."""

_LARGEST_BYTES = 32 * 2**20
"""What is taken from a heap and not from the kernel; glibc allows no more."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Keeps the buffers of messages for the next messages, where the C library is glibc.

    It would give each buffer of a byte stream back to the kernel and take new pages for the next one, which are zeroed
    and mapped one by one: a third of the CPU time of a server that receives.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_BYTES)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
