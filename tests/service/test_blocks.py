"""Guarantee: blocks are handed out whole, written by their owner only, and found only as they were committed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from service.raw import Stubs, ref_of, refs, refusal_of, writing
from service.servers import CAPACITY, IMAGE_BYTES, Server
from statepool import (
    BadFieldError,
    BatchTooLargeError,
    BlockBusyError,
    BlockIndexOutOfRangeError,
    BlockNotOwnedError,
    BlockNotWritableError,
    BlockRefs,
    BoundaryNotWrittenError,
    Client,
    ColumnLengthMismatchError,
    Commit,
    GenerationStaleError,
    IncarnationMismatchError,
    PoolExhaustedError,
    Session,
    StatepoolError,
)
from statepool.v1 import block_pb2 as pb

NULL_BLOCK = BlockRefs.of([0], [1])
PAST_THE_END = BlockRefs.of([CAPACITY + 1], [1])


def _commit(session: Session, blocks: BlockRefs, *hashes: bytes, namespace: str = "") -> Commit:
    return session.commit_blocks(
        blocks, prefix_hashes=hashes, boundary_tokens=16, written_through_tokens=16, namespace=namespace
    )


def test_blocks_come_zeroed(session: Session) -> None:
    """A block that was used before is zero on every rank when it is handed out again."""
    blocks = session.allocate_blocks(CAPACITY)
    for rank in (0, 1):
        session.write_blocks(blocks, np.full((CAPACITY, IMAGE_BYTES), 0xEE, np.uint8), rank_index=rank)
    session.free_blocks(blocks)

    again = session.allocate_blocks(CAPACITY)

    assert all(not session.read_images(again, rank_index=rank).any() for rank in (0, 1))


def test_zeroing_can_be_left_out(session: Session) -> None:
    """With zero=False a block comes as it was left."""
    blocks = session.allocate_blocks(1)
    session.write_blocks(blocks, np.full((1, 64), 0xEE, np.uint8))
    session.free_blocks(blocks)

    again = session.allocate_blocks(1, zero=False)

    assert again.block_ids == blocks.block_ids
    assert (session.read_images(again, length=64) == 0xEE).all()


def test_blocks_are_distinct_and_never_null(session: Session) -> None:
    """All blocks but the null block can be had, each once."""
    blocks = session.allocate_blocks(CAPACITY)

    assert sorted(blocks.block_ids.tolist()) == list(range(1, CAPACITY + 1))
    assert (blocks.generations % 2 == 1).all()


def test_exhaustion_is_all_or_nothing(client: Client, session: Session) -> None:
    """An allocation that cannot be met changes nothing and tells what there is."""
    blocks = session.allocate_blocks(CAPACITY - 1)
    _commit(session, blocks[:2], b"a", b"b")
    session.free_blocks(blocks[:2])
    before = client.get_pool().usage

    with pytest.raises(PoolExhaustedError) as caught:
        session.allocate_blocks(4)

    assert caught.value.metadata == {"free": "1", "evictable": "2", "requested": "4"}
    assert caught.value.retry_after is not None
    assert client.get_pool().usage == before


def test_references_are_counted(client: Client, session: Session) -> None:
    """A block is free with its last reference, and one call may drop several."""
    blocks = session.allocate_blocks(2)
    session.retain_blocks(BlockRefs.concat([blocks[:1], blocks[:1], blocks]))

    session.free_blocks(BlockRefs.concat([blocks, blocks[:1], blocks[:1]]))
    half = client.get_pool().usage.held_blocks
    session.free_blocks(blocks)

    assert half == 2
    assert client.get_pool().usage.free_blocks == CAPACITY


def test_freed_refs_are_stale(session: Session) -> None:
    """A ref that outlived its block is refused, also when the block was handed out again."""
    blocks = session.allocate_blocks(1)
    session.free_blocks(blocks)
    again = session.allocate_blocks(1)

    with pytest.raises(GenerationStaleError) as caught:
        session.free_blocks(blocks)

    assert again.block_ids == blocks.block_ids
    assert caught.value.field == "blocks"


def test_committed_blocks_are_found_and_shared(session: Session, other: Session) -> None:
    """Whoever looks a committed hash up gets the block with a reference of their own, bytes and all."""
    blocks = session.allocate_blocks(1)
    session.write_blocks(blocks, np.full((1, 64), 5, np.uint8))
    committed = _commit(session, blocks, b"h")
    session.free_blocks(blocks)

    hit = other.lookup_prefix([b"h"])

    assert hit is not None
    assert (hit.hash_index, hit.prefix_hash) == (0, b"h")
    assert hit.block.block_ids == committed.holders.block_ids == blocks.block_ids
    assert (other.read_images(hit.block, length=64) == 5).all()
    other.free_blocks(hit.block)


def test_lookup_finds_the_deepest(session: Session) -> None:
    """Of a chain of hashes the last known one wins, gaps and all."""
    _commit(session, session.allocate_blocks(2), b"1", b"3")

    deep, none = session.lookup_prefix([b"1", b"2", b"3", b"4"]), session.lookup_prefix([b"2", b"4"])

    assert deep is not None
    assert (deep.hash_index, deep.prefix_hash) == (2, b"3")
    assert none is None
    assert session.lookup_prefix([]) is None


def test_namespaces_keep_hashes_apart(session: Session) -> None:
    """The same hash in two namespaces names two blocks."""
    blocks = session.allocate_blocks(2)
    _commit(session, blocks[:1], b"h", namespace="a")
    _commit(session, blocks[1:], b"h", namespace="b")

    found = [session.lookup_prefix([b"h"], namespace=name) for name in ("a", "b", "")]

    assert [hit and int(hit.block.block_ids[0]) for hit in found] == [*blocks.block_ids.tolist(), None]


def test_duplicate_commit_keeps_the_first_holder(session: Session, other: Session) -> None:
    """A hash that is held already stays where it is, and the later block stays uncommitted and writable."""
    first, second = session.allocate_blocks(1), other.allocate_blocks(2)
    _commit(session, first, b"h")

    result = _commit(other, second, b"h", b"i")

    assert result.duplicate_rows.tolist() == [0]
    assert result.holders.block_ids.tolist() == [int(first.block_ids[0]), int(second.block_ids[1])]
    assert other.write_blocks(second[:1], bytes(8)) == 8


def test_recommit_of_the_same_hash_changes_nothing(session: Session) -> None:
    """To commit a block again under its own hash is harmless."""
    blocks = session.allocate_blocks(1)

    results = [_commit(session, blocks, b"h") for _ in range(2)]

    assert [result.holders.block_ids.tolist() for result in results] == [blocks.block_ids.tolist()] * 2
    assert [len(result.duplicate_rows) for result in results] == [0, 0]


def test_evict_by_ref_and_by_hash(session: Session) -> None:
    """Evicted blocks are not found any more; those without a reference are free, unknown hashes are passed over."""
    blocks = session.allocate_blocks(4)
    _commit(session, blocks[:3], b"1", b"2", b"3")
    session.free_blocks(blocks[:1])

    result = session.evict_blocks(blocks[1:], prefix_hashes=[b"1", b"2", b"unknown"])

    assert (result.unlisted_blocks, result.freed_blocks) == (3, 1)
    assert session.lookup_prefix([b"1", b"2", b"3"]) is None
    with pytest.raises(GenerationStaleError):
        session.free_blocks(blocks[:1])


def test_least_recently_used_goes_first(session: Session) -> None:
    """When free blocks run out, committed ones that nobody holds are reused, least recently used first."""
    blocks = session.allocate_blocks(3)
    _commit(session, blocks, b"1", b"2", b"3")
    session.free_blocks(blocks)
    hit = session.lookup_prefix([b"1"])
    assert hit is not None
    session.free_blocks(hit.block)

    session.allocate_blocks(CAPACITY - 2)

    assert session.lookup_prefix([b"2"]) is None
    assert session.lookup_prefix([b"3"]) is not None
    assert session.lookup_prefix([b"1"]) is not None


def _twice(blocks: BlockRefs) -> BlockRefs:
    return BlockRefs.concat([blocks, blocks])


@dataclass(frozen=True)
class Scene:
    """What a call that must be refused finds."""

    session: Session
    """The caller."""
    mine: BlockRefs
    """An uncommitted block of the caller."""
    theirs: BlockRefs
    """An uncommitted block of another session."""
    committed: BlockRefs
    """A block of the caller that is committed under the hash ``c``."""


def _commit_call(**changes: Any) -> Callable[[Scene], object]:
    ask: dict[str, Any] = {"prefix_hashes": [b"h"], "boundary_tokens": 16, "written_through_tokens": 16}
    return lambda s: s.session.commit_blocks(s.mine, **(ask | changes))


REFUSALS: dict[str, tuple[Callable[[Scene], object], type[StatepoolError], str]] = {
    "count-0": (lambda s: s.session.allocate_blocks(0), BadFieldError, "count"),
    "count-batch": (lambda s: s.session.allocate_blocks(4097), BatchTooLargeError, "count"),
    "free-theirs": (lambda s: s.session.free_blocks(s.theirs), BlockNotOwnedError, "blocks"),
    "free-twice": (lambda s: s.session.free_blocks(_twice(s.mine)), BlockNotOwnedError, "blocks"),
    "free-null": (lambda s: s.session.free_blocks(NULL_BLOCK), BlockIndexOutOfRangeError, "blocks"),
    "free-end": (lambda s: s.session.free_blocks(PAST_THE_END), BlockIndexOutOfRangeError, "blocks"),
    "free-some": (
        lambda s: s.session.free_blocks(BlockRefs.concat([s.mine, PAST_THE_END])),
        BlockIndexOutOfRangeError,
        "blocks",
    ),
    "free-batch": (
        lambda s: s.session.free_blocks(
            BlockRefs.of(np.full(4097, s.mine.block_ids), np.full(4097, s.mine.generations))
        ),
        BatchTooLargeError,
        "blocks",
    ),
    "free-generation": (
        lambda s: s.session.free_blocks(BlockRefs.of(s.mine.block_ids, s.mine.generations + 2)),
        GenerationStaleError,
        "blocks",
    ),
    "free-even": (
        lambda s: s.session.free_blocks(BlockRefs.of([CAPACITY], [0])),
        GenerationStaleError,
        "blocks",
    ),
    "retain-theirs": (lambda s: s.session.retain_blocks(s.theirs), BlockNotOwnedError, "blocks"),
    "evict-stale": (
        lambda s: s.session.evict_blocks(BlockRefs.of(s.mine.block_ids, s.mine.generations + 1)),
        GenerationStaleError,
        "blocks",
    ),
    "evict-hash": (lambda s: s.session.evict_blocks(prefix_hashes=[b""]), BadFieldError, "prefix_hashes"),
    "lookup-hash": (lambda s: s.session.lookup_prefix([b"x" * 65]), BadFieldError, "prefix_hashes"),
    "lookup-namespace": (lambda s: s.session.lookup_prefix([], namespace="x" * 257), BadFieldError, "namespace"),
    "lookup-batch": (lambda s: s.session.lookup_prefix([b"x"] * 4097), BatchTooLargeError, "prefix_hashes"),
    "commit-early": (_commit_call(written_through_tokens=15), BoundaryNotWrittenError, "written_through_tokens"),
    "commit-late": (_commit_call(written_through_tokens=17), BoundaryNotWrittenError, "written_through_tokens"),
    "commit-odd": (_commit_call(boundary_tokens=17, written_through_tokens=17), BadFieldError, "boundary_tokens"),
    "commit-0": (_commit_call(boundary_tokens=0, written_through_tokens=0), BadFieldError, "boundary_tokens"),
    "commit-empty-hash": (_commit_call(prefix_hashes=[b""]), BadFieldError, "prefix_hashes"),
    "commit-long-hash": (_commit_call(prefix_hashes=[b"x" * 65]), BadFieldError, "prefix_hashes"),
    "commit-hashes": (_commit_call(prefix_hashes=[b"x", b"y"]), ColumnLengthMismatchError, "prefix_hashes"),
    "commit-boundaries": (_commit_call(boundary_tokens=[16, 16]), ColumnLengthMismatchError, "boundary_tokens"),
    "commit-written": (_commit_call(written_through_tokens=[]), ColumnLengthMismatchError, "written_through_tokens"),
    "commit-namespace": (_commit_call(namespace="x" * 257), BadFieldError, "namespace"),
    "commit-theirs": (lambda s: _commit(s.session, s.theirs, b"h"), BlockNotOwnedError, "blocks"),
    "commit-twice": (
        lambda s: _commit(s.session, _twice(s.mine), b"1", b"2"),
        BadFieldError,
        "blocks",
    ),
    "commit-again": (lambda s: _commit(s.session, s.committed, b"other"), BlockNotWritableError, "blocks"),
    "commit-again-elsewhere": (
        lambda s: _commit(s.session, s.committed, b"c", namespace="n"),
        BlockNotWritableError,
        "blocks",
    ),
    "write-committed": (lambda s: s.session.write_blocks(s.committed, bytes(8)), BlockNotWritableError, "blocks"),
    "write-theirs": (lambda s: s.session.write_blocks(s.theirs, bytes(8)), BlockNotOwnedError, "blocks"),
    "read-theirs": (lambda s: s.session.read_images(s.theirs), BlockNotOwnedError, "blocks"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refused_call_changes_nothing(client: Client, session: Session, other: Session, name: str) -> None:
    """A bad call raises its own class with its field, and the pool is as it was before."""
    call, expected, field = REFUSALS[name]
    scene = Scene(session, session.allocate_blocks(1), other.allocate_blocks(1), session.allocate_blocks(1))
    _commit(session, scene.committed, b"c")
    before = [repr((page.blocks, page.states, page.reference_counts)) for page in client.list_blocks()]

    with pytest.raises(expected) as caught:
        call(scene)

    assert caught.value.field == field
    assert [repr((page.blocks, page.states, page.reference_counts)) for page in client.list_blocks()] == before


def test_unequal_ref_columns_are_refused(session: Session, stubs: Stubs) -> None:
    """Refs whose generations are too few or too many are COLUMN_LENGTH_MISMATCH."""
    blocks = refs(session.allocate_blocks(2))
    del blocks.generations[1]

    error = refusal_of(lambda: stubs.blocks.FreeBlocks(pb.FreeBlocksRequest(session=ref_of(session), blocks=blocks)))

    assert isinstance(error, ColumnLengthMismatchError)
    assert error.field == "blocks"


def test_block_being_written_cannot_be_committed(server: Server, session: Session) -> None:
    """A commit under a running write is BLOCK_BUSY, and goes through when the write is done."""
    blocks = session.allocate_blocks(1)

    with writing(server, session, blocks):
        with pytest.raises(BlockBusyError) as caught:
            _commit(session, blocks, b"h")
        assert caught.value.field == "blocks"

    assert len(_commit(session, blocks, b"h").duplicate_rows) == 0


def test_freed_block_waits_for_its_write(server: Server, client: Client, session: Session) -> None:
    """A block that is freed under a running write is handed to nobody before the write ends."""
    blocks = session.allocate_blocks(CAPACITY)

    with writing(server, session, blocks[:1]):
        session.free_blocks(blocks[:1])
        with pytest.raises(PoolExhaustedError):
            session.allocate_blocks(1)
        assert client.get_pool().usage.releasing_blocks == 1

    assert session.allocate_blocks(1).block_ids == blocks.block_ids[:1]


def test_call_for_another_process_is_refused(session: Session, stubs: Stubs) -> None:
    """A call that was meant for another server process is refused and told which one answers."""
    ref = ref_of(session)
    ref.incarnation ^= 1

    error = refusal_of(lambda: stubs.blocks.AllocateBlocks(pb.AllocateBlocksRequest(session=ref, count=1)))

    assert isinstance(error, IncarnationMismatchError)
    assert error.metadata["incarnation"] == str(session.incarnation)
