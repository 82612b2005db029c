"""Values of request fields that more than one call has."""

import os

import numpy as np
from google.protobuf.duration_pb2 import Duration
from numpy.typing import ArrayLike, NDArray

from statepool.packing import FIXED32, pack


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
        ValueError: Something else.
    """
    return np.frombuffer(pack(values, name, FIXED32), FIXED32).astype(np.int64)
