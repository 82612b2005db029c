"""Guarantee: block images that are streamed in chunks arrive byte for byte, or not at all."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statepool.byte_chunks import decode_chunk
from statepool.calls.images import ImageReader, Images, as_images, write_messages
from statepool.errors import ChecksumMismatchError, DataLossError
from statepool.refs import BlockRefs
from statepool.v1 import block_pb2, types_pb2

bytes_of_images = st.tuples(st.integers(1, 3), st.integers(1, 40)).flatmap(
    lambda shape: st.binary(min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]).map(
        lambda data: np.frombuffer(data, np.uint8).reshape(shape)
    )
)


def _responses(images: Images, chunk: int) -> list[block_pb2.ReadBlocksResponse]:
    """Answers a read with what a write of the same images would send."""
    refs = BlockRefs.of(range(1, len(images) + 1), [1] * len(images))
    messages = list(
        write_messages(
            types_pb2.SessionRef(), refs, images, offset=0, rank_index=0, layout_fingerprint="", max_chunk_bytes=chunk
        )
    )
    assert messages[0].WhichOneof("message") == "header"
    return [
        block_pb2.ReadBlocksResponse(
            block_index=message.chunk.block_index,
            offset=message.chunk.offset,
            data=message.chunk.data,
            checksum=message.chunk.checksum,
        )
        for message in messages[1:]
    ]


def _reader(images: Images) -> ImageReader:
    refs = BlockRefs.of(range(1, len(images) + 1), [1] * len(images))
    return ImageReader(types_pb2.SessionRef(), refs, offset=0, length=None, rank_index=0, image_bytes=images.shape[1])


@settings(deadline=None)
@given(bytes_of_images, st.integers(1, 50))
def test_images(images: Images, chunk: int) -> None:
    """Images cut into chunks of any size are put together again, byte for byte."""
    reader = _reader(images)
    got = reader.new_images()

    for response in _responses(as_images(images.tobytes(), len(images)), chunk):
        assert len(response.data) <= chunk
        reader.place(reader.accept(decode_chunk(response.SerializeToString())), got)
    reader.finish()

    assert np.array_equal(got, images)


@settings(deadline=None)
@given(bytes_of_images, st.integers(1, 50), st.data())
def test_damaged_images_are_noticed(images: Images, chunk: int, data: st.DataObject) -> None:
    """A flipped byte, a chunk left out, and a chunk sent twice never pass for the state."""
    responses = _responses(images, chunk)
    victim = data.draw(st.integers(0, len(responses) - 1))
    flipped = block_pb2.ReadBlocksResponse.FromString(responses[victim].SerializeToString())
    flipped.data = bytes([flipped.data[0] ^ 1]) + flipped.data[1:]

    with pytest.raises(ChecksumMismatchError):
        _read([*responses[:victim], flipped], images)
    with pytest.raises(DataLossError):
        _read([*responses[:victim], *responses[victim + 1 :]], images)
    with pytest.raises(DataLossError):
        _read([*responses[: victim + 1], responses[victim]], images)


def _read(responses: Sequence[block_pb2.ReadBlocksResponse], images: Images) -> None:
    reader = _reader(images)
    for response in responses:
        reader.accept(decode_chunk(response.SerializeToString()))
    reader.finish()


@pytest.mark.parametrize("data", [b"abc", np.zeros((1, 4), np.uint8), np.zeros(8, np.uint8), np.zeros((2, 4), np.int8)])
def test_data_of_another_shape_is_refused(data: bytes) -> None:
    """What is not one image of equal length per block is not written."""
    with pytest.raises(ValueError, match=r"^data: "):
        as_images(data, 2)
