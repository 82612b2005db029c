"""A column in shared memory that outlives the process, whatever ends it."""

import mmap
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def new_column(path: Path, rows: int) -> NDArray[np.int64]:
    """Makes a column of zeros, ``[rows]``, in a file, in place of any that is there.

    Raises:
        OSError: The file system has not so much room.
    """
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, rows * 8)
        return np.frombuffer(mmap.mmap(descriptor, rows * 8, mmap.MAP_SHARED), np.int64)
    finally:
        os.close(descriptor)


def read_column(path: Path, rows: int) -> NDArray[np.int64] | None:
    """Reads a column, ``[rows]``; None where there is none, or one of another length."""
    try:
        column = np.fromfile(path, np.int64)
    except OSError:
        return None
    return column if len(column) == rows else None
