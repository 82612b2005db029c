"""Plain values to bytes and back: numbers, text, lists, dataclasses, and columns as numpy arrays.

MessagePack by msgspec: typed on the way back, so a value of another shape is an error and not a surprise.
"""

from typing import Any, TypeVar

import msgspec
import numpy as np

T = TypeVar("T")


class EncodingError(ValueError):
    """Bytes that are not a value of the type that was asked for."""


def encode(value: object) -> bytes:
    """Writes a value."""
    return _ENCODER.encode(value)


def decode(data: bytes, kind: type[T]) -> T:
    """Reads a value.

    Raises:
        EncodingError: The bytes are no such value.
    """
    try:
        return msgspec.msgpack.decode(data, type=kind, dec_hook=_to_array)
    except (msgspec.MsgspecError, ValueError, TypeError) as error:
        raise EncodingError(f"not a {getattr(kind, '__name__', kind)}: {error}") from error


def _from_array(value: object) -> object:
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, np.ascontiguousarray(value).data
    raise TypeError(f"a {type(value).__name__} is no plain value")


def _to_array(_kind: type, value: Any) -> object:
    dtype, shape, data = value
    return np.frombuffer(data, np.dtype(dtype)).reshape(shape).copy()  # what is read back will be changed


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_from_array)
