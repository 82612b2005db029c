"""Guarantee: chunks are ordinary messages to others, and are read without a copy however others order their fields."""

import numpy as np
import pytest
import xxhash
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from statepool import ChecksumMismatchError
from statepool.byte_chunks import decode_chunk, encode_chunk
from statepool.v1.transfer_pb2 import PullBlocksResponse

NUMBERS = st.integers(0, 2**32 - 1)


@given(st.binary(max_size=400), NUMBERS, st.integers(0, 2**64 - 1))
def test_written_chunks_are_messages(data: bytes, block_index: int, offset: int) -> None:
    """What is written reads as the message, and back as what it was written of, without a copy of the bytes."""
    head = PullBlocksResponse(incarnation=7, block_index=block_index, offset=offset)
    written = encode_chunk(head, memoryview(data))

    message, chunk = PullBlocksResponse.FromString(written), decode_chunk(written)

    assert (message.incarnation, message.block_index, message.offset) == (7, block_index, offset)
    assert (message.data, message.checksum) == (data, xxhash.xxh3_64_intdigest(data))
    assert (chunk.block_index, chunk.offset) == (block_index, offset)
    assert (bytes(chunk.data), chunk.checksum) == (data, message.checksum)
    assert not data or chunk.data.obj is written
    chunk.check()


@given(st.binary(min_size=1, max_size=400), st.permutations(range(4)), st.binary(max_size=20))
def test_fields_come_in_any_order(data: bytes, order: list[int], unknown: bytes) -> None:
    """Fields in any order, repeated or unknown, are read as any reader of messages reads them."""
    parts = [
        PullBlocksResponse(data=data).SerializeToString(),
        PullBlocksResponse(block_index=3, offset=300).SerializeToString(),
        PullBlocksResponse(checksum=9).SerializeToString(),
        b"\xfa\x01" + bytes((len(unknown),)) + unknown + b"\xfd\x010000",  # field 31 twice: bytes, and a fixed32
    ]
    written = PullBlocksResponse(data=b"older").SerializeToString() + b"".join(parts[at] for at in order)

    chunk = decode_chunk(written)

    assert (chunk.block_index, chunk.offset, bytes(chunk.data), chunk.checksum) == (3, 300, data, 9)


@given(st.binary(max_size=200))
def test_noise_is_refused_or_read(noise: bytes) -> None:
    """Bytes that are no message raise DecodeError, and nothing else; others read as protobuf reads them."""
    try:
        chunk = decode_chunk(noise)
    except DecodeError:
        return
    message = PullBlocksResponse.FromString(noise)
    assert (chunk.block_index, bytes(chunk.data)) == (message.block_index, message.data)


@pytest.mark.parametrize("field", [b"\x08", b"\x1a", b""])
def test_endless_numbers_are_refused(field: bytes) -> None:
    """A value, a length or a tag that goes on and on costs no more than one of ten bytes."""
    longest = b"\x08" + b"\xff" * 9 + b"\x01"

    assert decode_chunk(longest).block_index == PullBlocksResponse.FromString(longest).block_index
    with pytest.raises(DecodeError, match="ten bytes"):
        decode_chunk(field + b"\xff" * 2**20 + b"\x01")


def test_cut_messages_are_refused() -> None:
    """A message that ends within its bytes is none."""
    written = encode_chunk(PullBlocksResponse(), np.arange(100, dtype=np.uint8).data)
    for end in range(len(written) - 100, len(written)):
        with pytest.raises(DecodeError):
            decode_chunk(written[:end])


def test_damage_is_found() -> None:
    """A flipped bit does not pass the check."""
    written = bytearray(encode_chunk(PullBlocksResponse(), b"some bytes"))
    written[-1] ^= 1
    with pytest.raises(ChecksumMismatchError):
        decode_chunk(bytes(written)).check()
