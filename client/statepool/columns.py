"""Packed fixed-width columns of messages, read and written as numpy arrays.

A packed ``repeated fixed32``/``fixed64`` field is, on the wire, a tag, a length and a little-endian array. Going
through the wire form costs one copy (a few µs for 1,024 refs), where Python integers cost 50 µs a column.
A message that came from a peer is serialised by our own protobuf runtime first, which always packs and always writes
fields in the order of their numbers, however the peer had sent them.
"""

from collections.abc import Mapping
from typing import TypeVar

import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray

from statepool.packing import FIXED32, FIXED64
from statepool.varints import read_varint, varint

__all__ = ["FIXED32", "FIXED64", "columns_of_message", "merge_columns", "message_of_columns"]

M = TypeVar("M", bound=Message)

_LENGTH_DELIMITED = 2
_EMPTY: NDArray[np.int64] = np.empty(0, np.int64)
_EMPTY.flags.writeable = False


def message_of_columns(message_type: type[M], columns: Mapping[int, NDArray[np.generic]]) -> M:
    """Builds a message from packed columns.

    Args:
        message_type: The class of the message.
        columns: Field number (below 16) to array; its element type must have the field's width.

    Returns:
        The message; other fields can be set on it afterwards.
    """
    message = message_type()
    merge_columns(message, {number: column.tobytes() for number, column in columns.items()})
    return message


def merge_columns(message: Message, columns: Mapping[int, bytes]) -> None:
    """Adds packed columns to a message, in the place where it stands.

    Args:
        message: The message.
        columns: Field number (below 16) to the column as `statepool.packing.pack` writes it, of the field's width.
    """
    parts: list[bytes] = []
    for number, column in columns.items():
        if column:
            parts += (bytes((number << 3 | _LENGTH_DELIMITED,)), varint(len(column)), column)
    if parts:
        message.MergeFromString(b"".join(parts))


def columns_of_message(message: Message, dtypes: Mapping[int, np.dtype[np.generic]]) -> dict[int, NDArray[np.int64]]:
    """Reads packed columns of a message.

    Args:
        message: The message; every other field with content must have a number above those of the columns.
        dtypes: Field number (below 16) to the column's element type, in ascending order of the numbers.

    Returns:
        Field number to column. Values of ``fixed64`` above 2**63 - 1 come out negative, which no id, generation or
        count ever is, so that a check against what exists refuses them.
    """
    data, position = message.SerializeToString(deterministic=True), 0
    columns: dict[int, NDArray[np.int64]] = {}
    for number, dtype in dtypes.items():
        if position >= len(data) or data[position] != number << 3 | _LENGTH_DELIMITED:
            columns[number] = _EMPTY
            continue
        size, position = read_varint(data, position + 1)
        columns[number] = np.frombuffer(data, dtype, size // dtype.itemsize, position).astype(np.int64)
        position += size
    return columns
