"""Chunks of byte streams on the wire, without the two copies that a message makes of its bytes each way.

Messages written one after the other read as one message that has the fields of all. So a chunk is written as a message
of all fields but the bytes, with the field of the bytes behind it, which every reader of messages understands. Our own
reader finds the bytes wherever they stand, and leaves them there.
"""

from dataclasses import dataclass, field

import xxhash
from google.protobuf.message import DecodeError

from statepool.errors import ChecksumMismatchError
from statepool.v1.block_pb2 import ReadBlocksResponse
from statepool.v1.transfer_pb2 import PullBlocksResponse
from statepool.varints import read_varint, varint

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_SIZES = {_FIXED64: 8, _FIXED32: 4}
_DATA_TAG = ReadBlocksResponse.DATA_FIELD_NUMBER << 3 | _BYTES


@dataclass(frozen=True, slots=True)
class UncheckedChunk:
    """Some bytes of an image as they have come, and where they lie in it."""

    block_index: int
    """Image, from 0."""
    offset: int
    """First byte in the image."""
    data: memoryview = field(repr=False)
    """The bytes, in the message that has brought them."""
    checksum: int
    """XXH3 (64 bit, seed 0) of the bytes that were sent."""

    def check(self) -> None:
        """Compares the bytes with their checksum; releases the GIL.

        Raises:
            ChecksumMismatchError: They are not those that were sent.
        """
        if xxhash.xxh3_64_intdigest(self.data) != self.checksum:
            raise ChecksumMismatchError(f"block_index {self.block_index}, offset {self.offset}: wrong bytes")


def encode_chunk(head: ReadBlocksResponse | PullBlocksResponse, data: bytes | memoryview) -> bytes:
    """Writes a chunk; the one copy of its bytes is made here, and their checksum.

    Args:
        head: The message without the data and without the checksum.
        data: The bytes; where somebody writes them meanwhile, the reader finds them other than their checksum.
    """
    head.checksum = xxhash.xxh3_64_intdigest(data)
    return b"".join((head.SerializeToString(), bytes((_DATA_TAG,)), varint(len(data)), data))


def decode_chunk(message: bytes) -> UncheckedChunk:
    """Reads a `ReadBlocksResponse` or `PullBlocksResponse`, which have the same fields.

    Raises:
        DecodeError: The bytes are no message.
    """
    try:
        head, data = _split(message)
    except IndexError:
        raise DecodeError("the message ends within a field") from None
    fields = ReadBlocksResponse.FromString(head)
    return UncheckedChunk(fields.block_index, fields.offset, data, fields.checksum)


def _split(message: bytes) -> tuple[bytes, memoryview]:
    """Takes the bytes out of a chunk: what remains, and they; the last ones, if there are several."""
    whole, rest, data, start = memoryview(message), [], memoryview(b""), 0
    while start < len(message):
        tag, value = read_varint(message, start)
        size, first = _extent(message, tag & 7, value)
        end = first + size
        if end > len(message):
            raise IndexError
        if tag == _DATA_TAG:
            data = whole[first:end]
        else:
            rest.append(whole[start:end])
        start = end
    return b"".join(rest), data


def _extent(message: bytes, wire_type: int, value: int) -> tuple[int, int]:
    """Tells how many bytes the value of a field has, behind its length, and where they begin."""
    if wire_type == _BYTES:
        return read_varint(message, value)
    if wire_type == _VARINT:
        return read_varint(message, value)[1] - value, value
    if wire_type in _SIZES:
        return _SIZES[wire_type], value
    raise DecodeError(f"wire type {wire_type} is of no field")
