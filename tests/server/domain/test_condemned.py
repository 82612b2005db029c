"""Guarantee: a block whose bytes have changed is neither found, read, nor handed out again, until it is pardoned."""

import numpy as np
import pytest

from statepool.errors import BlockNotWritableError, ChecksumMismatchError, PoolExhaustedError
from statepool.refs import BlockRefs
from statepool_server.blocks import BlockState
from statepool_server.integrity import check_integrity
from statepool_server.pool import Pool, PoolConfig

CAPACITY = 4


@pytest.fixture
def pool() -> Pool:
    """Builds a small pool with the session (1, 1)."""
    pool = Pool(PoolConfig(block_count=CAPACITY + 1, block_tokens=1))
    pool.create_session("", 10**9, False, 0)
    return pool


def committed(pool: Pool, count: int) -> BlockRefs:
    """Commits blocks under the hashes b"0", b"1" and so on."""
    refs = pool.allocate(1, 1, count)
    hashes = [b"%d" % row for row in range(count)]
    pool.commit(1, 1, refs, "", hashes, np.ones(count, np.int64), np.ones(count, np.int64))
    return refs


def test_an_evictable_block(pool: Pool) -> None:
    """It is not found, and not evicted to make room; pardoned, it is blank."""
    refs = committed(pool, 1)
    pool.free(1, 1, refs)

    assert pool.condemn(refs) == refs

    assert pool.lookup(1, 1, "", [b"0"]) is None
    with pytest.raises(PoolExhaustedError):
        pool.allocate(1, 1, CAPACITY)
    check_integrity(pool)
    assert pool.pardon() == 1
    assert len(pool.allocate(1, 1, CAPACITY)) == CAPACITY


def test_a_held_block(pool: Pool) -> None:
    """Its holders can neither read it nor copy from it, but give it back; only then would a pardon make it blank."""
    refs = committed(pool, 2)
    target = pool.allocate(1, 1, 1)
    pool.condemn(refs[:1])

    with pytest.raises(ChecksumMismatchError) as read:
        pool.pin_read(1, 1, refs)
    with pytest.raises(ChecksumMismatchError):
        pool.pin_copy(1, 1, refs[:1], target, refs[:1])
    with pytest.raises(BlockNotWritableError):
        pool.pin_write(1, 1, refs[:1])

    assert read.value.metadata == {"block": str(refs.block_ids[0])}
    assert pool.blocks.states(refs.block_ids).tolist() == [BlockState.QUARANTINED, BlockState.SHARED]
    pool.free(1, 1, refs[:1])
    assert pool.usage().releasing == 1
    pool.pardon()
    assert pool.usage().free == 2


def test_what_is_passed_over(pool: Pool) -> None:
    """Stale refs, bad ones, uncommitted blocks, and blocks that are condemned already."""
    refs, own = committed(pool, 1), pool.allocate(1, 1, 1)
    stale = BlockRefs(refs.block_ids, refs.generations - 2)
    bad = BlockRefs.of([0, -1, CAPACITY + 1], [0, 1, 1])

    assert pool.condemn(BlockRefs.concat([stale, bad, own])) == BlockRefs.empty()
    assert pool.condemn(BlockRefs.concat([refs, refs])) == refs
    assert pool.condemn(refs) == BlockRefs.empty()
    assert pool.usage().quarantined == 1


def test_another_block_takes_its_name(pool: Pool) -> None:
    """The state can be computed and committed again, elsewhere."""
    refs = committed(pool, 1)
    pool.condemn(refs)

    again = committed(pool, 1)

    hit = pool.lookup(1, 1, "", [b"0"])
    assert hit is not None
    assert hit.block == again != refs


def test_the_operator_alone_ends_it(pool: Pool) -> None:
    """Neither the end of its session nor the word of attached processes does."""
    refs = committed(pool, 1)
    pool.attach(0, False)
    pool.condemn(refs)

    pool.delete_session(1, 1)
    pool.release_quarantine(0)

    assert pool.usage().quarantined == 1
    check_integrity(pool)
