"""Columns of integers as little-endian arrays, without wrapping any of them around."""

import struct
from typing import Any

import numpy as np

FIXED32: np.dtype[np.unsignedinteger] = np.dtype("<u4")
"""Element type of a packed ``repeated fixed32``."""
FIXED64: np.dtype[np.unsignedinteger] = np.dtype("<u8")
"""Element type of a packed ``repeated fixed64``."""

_FORMATS = {FIXED32: "I", FIXED64: "Q"}
_MAXIMA = {FIXED32: 2**32 - 1, FIXED64: 2**64 - 1}


def pack(values: Any, name: str, dtype: np.dtype[np.unsignedinteger]) -> bytes:
    """Writes a column of integers.

    Args:
        values: Integers, a list or anything that numpy can read, ``[n]``; a single one is a column of length 1.
        name: What an error calls it.
        dtype: FIXED32 or FIXED64.

    Returns:
        The array's bytes.

    Raises:
        ValueError: Not integers, more than one dimension, negative, or too large for the dtype.
    """
    try:
        if isinstance(values, int):
            return values.to_bytes(dtype.itemsize, "little")
        if isinstance(values, list | tuple):  # half the time of numpy, which would take 1.5 for 1 besides
            return struct.pack(f"<{len(values)}{_FORMATS[dtype]}", *values) if values else b""
    except (OverflowError, struct.error, TypeError) as error:
        raise _refusal(name, dtype) from error
    column = np.asarray(values)
    if column.size == 0:
        return b""
    if column.ndim > 1 or column.dtype.kind not in "iu":
        raise _refusal(name, dtype)
    # The bits of all of them together are negative, or pass a power of two, exactly if one of them is or does.
    if not 0 <= int(np.bitwise_or.reduce(column, axis=None)) <= _MAXIMA[dtype]:
        raise _refusal(name, dtype)
    return column.astype(dtype).tobytes()


def _refusal(name: str, dtype: np.dtype[np.unsignedinteger]) -> ValueError:
    return ValueError(f"{name}: must be a column of integers from 0 to {_MAXIMA[dtype]}")
