"""Values of request fields that more than one call has."""

import os

import numpy as np
from google.protobuf.duration_pb2 import Duration
from numpy.typing import ArrayLike, NDArray

from statepool.columns import FIXED32


def new_request_id() -> str:
    """Makes a request id: a random 128-bit number, in hex."""
    return os.urandom(16).hex()  # what secrets.token_hex does, without 3 ms of imports


def duration(seconds: float, name: str) -> Duration:
    """Writes a duration.

    Raises:
        ValueError: Negative, or more than 68 years.
    """
    if not 0 <= seconds < 2**31:
        raise ValueError(f"{name}: {seconds} is no number of seconds from 0 on")
    message = Duration()
    message.FromNanoseconds(round(seconds * 1e9))
    return message


def column(values: ArrayLike, name: str) -> NDArray[np.int64]:
    """Reads a column of numbers from 0 to 2**32 - 1; a single number is a column of length 1.

    Raises:
        ValueError: Not integers, more than one dimension, or a number that the wire would wrap around.
    """
    read = np.atleast_1d(np.asarray(values))
    if read.size == 0:
        return np.empty(0, np.int64)
    if read.ndim != 1 or read.dtype.kind not in "iu":
        raise ValueError(f"{name}: {read.dtype} {list(read.shape)} is no column of integers")
    if int(read.min()) < 0 or int(read.max()) > np.iinfo(FIXED32).max:
        raise ValueError(f"{name}: numbers from {read.min()} to {read.max()} do not fit 32 bits")
    return read.astype(np.int64)
