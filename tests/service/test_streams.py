"""Guarantee: byte streams move exactly the bytes asked for, checked, and hold their blocks no longer than they move."""

import contextlib
from queue import SimpleQueue

import numpy as np
import pytest
from numpy.typing import NDArray

from service.conftest import plain_stubs
from service.raw import OpenWrite, Stubs, busy_blocks, chunk_of, ref_of, refs, refusal_of, writing
from service.servers import CHUNK_BYTES, IMAGE_BYTES, Server, until
from statepool import (
    BadFieldError,
    BatchTooLargeError,
    BlockBusyError,
    BlockIndexOutOfRangeError,
    BlockRefs,
    ChecksumMismatchError,
    Client,
    LayoutMismatchError,
    Session,
    SessionFencedError,
    SessionNotFoundError,
    StreamStalledError,
)
from statepool.layout import BlockLayout
from statepool.v1 import block_pb2 as pb


def _random(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def _padding(block: BlockLayout) -> NDArray[np.bool_]:
    padding = np.ones(block.image_bytes, np.bool_)
    for state, offset in zip(block.states, block.image_offsets, strict=True):
        padding[offset : offset + state.nbytes] = False
    return padding


def _header(session: Session, blocks: BlockRefs) -> pb.WriteBlocksHeader:
    return pb.WriteBlocksHeader(session=ref_of(session), blocks=refs(blocks))


@pytest.mark.parametrize(("offset", "length"), [(0, IMAGE_BYTES), (1, 1), (7, 333), (255, 2), (831, 1), (100, 700)])
def test_ranges_are_written_and_read_exactly(client: Client, session: Session, offset: int, length: int) -> None:
    """Bytes of states arrive where they belong at any offset, on their rank only; padding is always read as zeros."""
    blocks, data = session.allocate_blocks(3), _random(3, length)

    written = session.write_blocks(blocks, data, offset=offset, rank_index=1)

    expected = np.zeros((3, IMAGE_BYTES), np.uint8)
    expected[:, offset : offset + length] = data
    expected[:, _padding(client.get_pool().layout.block)] = 0
    assert written == 3 * length
    assert np.array_equal(session.read_images(blocks, rank_index=1), expected)
    assert np.array_equal(
        session.read_images(blocks, offset=offset, length=length, rank_index=1), expected[:, offset : offset + length]
    )
    assert not session.read_images(blocks, rank_index=0).any()


def test_reading_comes_in_chunks_in_order(session: Session) -> None:
    """An image is cut at the server's chunk size, block after block."""
    blocks = session.allocate_blocks(2)

    chunks = [(chunk.block_index, chunk.offset, len(chunk.data)) for chunk in session.read_blocks(blocks, offset=10)]

    rest = IMAGE_BYTES - 10 - 3 * CHUNK_BYTES
    image = [(10 + i * CHUNK_BYTES, CHUNK_BYTES) for i in range(3)] + [(10 + 3 * CHUNK_BYTES, rest)]
    assert chunks == [(row, offset, size) for row in (0, 1) for offset, size in image]


def test_chunks_may_come_in_any_order_and_size(session: Session, stubs: Stubs) -> None:
    """A writer of its own may send chunks as it likes; an empty one is harmless."""
    blocks = session.allocate_blocks(2)
    stream = OpenWrite(stubs, _header(session, blocks))

    for message in (chunk_of(b"later", 512, 1), chunk_of(b"first", 0, 0), chunk_of(b"", 1024, 1), chunk_of(b"l", 512)):
        stream.send(message)
    answer = stream.finish()

    images = session.read_images(blocks)
    assert answer.written_bytes == 11
    assert (images[1, 512:517].tobytes(), images[0, :5].tobytes()) == (b"later", b"first")


def test_nothing_can_be_streamed(session: Session) -> None:
    """No blocks, or no bytes, make an empty stream."""
    blocks = session.allocate_blocks(1)

    assert session.write_blocks(BlockRefs.empty(), b"") == 0
    assert session.read_images(BlockRefs.empty()).shape == (0, IMAGE_BYTES)
    assert session.read_images(blocks, offset=IMAGE_BYTES).shape == (1, 0)


def test_damaged_chunk_is_not_written(session: Session, stubs: Stubs) -> None:
    """A chunk that does not match its checksum is refused whole; the chunks before it stay."""
    blocks = session.allocate_blocks(1)
    stream = OpenWrite(stubs, _header(session, blocks))
    stream.send(chunk_of(b"good", 0))
    stream.send(chunk_of(b"damaged", 4, checksum=1))

    error = stream.refusal()

    assert isinstance(error, ChecksumMismatchError)
    assert error.field == "chunk.checksum"
    assert session.read_images(blocks, length=16).tobytes() == b"good".ljust(16, b"\0")


def test_another_layout_is_refused(client: Client, session: Session) -> None:
    """Bytes of another layout are refused before the first of them; those of the pool's are taken."""
    blocks, fingerprint = session.allocate_blocks(1), client.get_pool().layout.block.fingerprint

    with pytest.raises(LayoutMismatchError) as caught:
        session.write_blocks(blocks, bytes(8), layout_fingerprint="0" * 64)

    assert caught.value.field == "header.layout_fingerprint"
    assert session.write_blocks(blocks, bytes(8), layout_fingerprint=fingerprint) == 8


def test_ranges_past_the_end_are_refused(session: Session, stubs: Stubs) -> None:
    """A range that ends past the image is OUT_OF_RANGE both ways."""
    blocks = session.allocate_blocks(1)

    for offset, length in ((IMAGE_BYTES, 1), (1000, 25), (0, IMAGE_BYTES + 1), (2**63, 2**63), (IMAGE_BYTES + 1, 0)):
        request = pb.ReadBlocksRequest(session=ref_of(session), blocks=refs(blocks), offset=offset, length=length)
        error = refusal_of(lambda: list(stubs.blocks.ReadBlocks(request)))  # noqa: B023 — called at once
        assert isinstance(error, BlockIndexOutOfRangeError), (offset, length)
    with pytest.raises(BlockIndexOutOfRangeError) as caught:
        session.write_blocks(blocks, bytes(25), offset=1000)
    assert caught.value.field == "offset"


@pytest.mark.parametrize(
    ("messages", "expected", "field"),
    [
        ([], BadFieldError, "header"),
        ([pb.WriteBlocksRequest()], BadFieldError, "header"),
        ([chunk_of(b"x")], BadFieldError, "header"),
        (["header", "header"], BadFieldError, "chunk"),
        (["header", pb.WriteBlocksRequest()], BadFieldError, "chunk"),
        (["header", chunk_of(b"x", block_index=2)], BlockIndexOutOfRangeError, "chunk.block_index"),
        (["header", chunk_of(b"x", offset=2**64 - 1)], BlockIndexOutOfRangeError, "offset"),
        (["header", chunk_of(bytes(CHUNK_BYTES + 1))], BatchTooLargeError, "chunk.data"),
    ],
)
def test_stream_that_breaks_the_rules_is_ended(
    session: Session,
    stubs: Stubs,
    messages: list[str | pb.WriteBlocksRequest],
    expected: type[Exception],
    field: str,
) -> None:
    """A stream must be a header and then chunks within its blocks; its pins go with it."""
    header = pb.WriteBlocksRequest(header=_header(session, session.allocate_blocks(2)))

    sent = iter([header if isinstance(message, str) else message for message in messages])
    error = refusal_of(lambda: stubs.blocks.WriteBlocks(sent))

    assert isinstance(error, expected)
    assert error.field == field
    until(lambda: busy_blocks(stubs) == 0, "the pins to go")


def test_stalled_writer_is_ended(tight: Server) -> None:
    """A writer that stands still longer than the stall timeout loses its stream and its pin."""
    with tight.client() as client, client.create_session(60.0) as session, plain_stubs(tight) as stubs:
        blocks = session.allocate_blocks(1)
        stream = OpenWrite(stubs, _header(session, blocks))
        stream.send(chunk_of(b"some"))

        error = stream.refusal()

        assert isinstance(error, StreamStalledError)
        assert "the writer stood still" in error.message
        assert session.write_blocks(blocks, b"more") == 4
        assert session.read_images(blocks, length=4).tobytes() == b"more"


def test_writer_without_a_header_is_ended(tight: Server) -> None:
    """A stream whose first message never comes is ended too."""
    never: SimpleQueue[pb.WriteBlocksRequest | None] = SimpleQueue()
    with plain_stubs(tight) as stubs:
        error = refusal_of(lambda: stubs.blocks.WriteBlocks(iter(never.get, None)))
        never.put(None)

    assert isinstance(error, StreamStalledError)


@pytest.mark.parametrize("kind", ["deleted", "taken over"])
def test_lost_session_writes_nothing_more(server: Server, client: Client, stubs: Stubs, kind: str) -> None:
    """When the session of an open stream is deleted or taken over, its next chunk is refused."""
    owner = client.create_session(60.0, owner_key="writer")
    blocks = owner.allocate_blocks(1)
    with writing(server, owner, blocks) as stream, server.client() as thief:
        if kind == "deleted":
            owner.delete()
        else:
            successor = thief.create_session(60.0, owner_key="writer", take_over=True)
        stream.send(chunk_of(b"late"))

        error = stream.refusal()

        assert isinstance(error, SessionNotFoundError if kind == "deleted" else SessionFencedError)
        if kind == "taken over":
            until(lambda: busy_blocks(stubs) == 0, "the pin to go")
            assert not successor.read_images(blocks).any()


def test_written_blocks_have_one_writer(server: Server, session: Session) -> None:
    """While one stream writes a block, no other stream reads or writes it."""
    blocks = session.allocate_blocks(1)

    with writing(server, session, blocks):
        with pytest.raises(BlockBusyError):
            session.read_images(blocks)
        with pytest.raises(BlockBusyError):
            session.write_blocks(blocks, bytes(8))

    assert session.write_blocks(blocks, bytes(8)) == 8


def test_reader_that_goes_away_gives_its_pin_back(client: Client, session: Session) -> None:
    """A reader that stops in the middle leaves no pin behind, so its blocks can be written again."""
    blocks = session.allocate_blocks(8)
    with contextlib.closing(session.read_blocks(blocks)) as reader:
        next(reader)

    until(lambda: client.get_pool().usage.busy_blocks == 0, "the pins of the reader to go")
    assert session.write_blocks(blocks, bytes(8 * IMAGE_BYTES)) == 8 * IMAGE_BYTES
