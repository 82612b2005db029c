"""Guarantee: allocation hands out each block once, blank ones first, then the least recently used committed ones."""

import numpy as np
import pytest

from statepool.errors import BadFieldError, BlockIndexOutOfRangeError, GenerationStaleError, PoolExhaustedError
from statepool.refs import BlockRefs
from support.small_pool import ALICE, BLOCK_COUNT, BOB, cached, ids, small_pool


def test_blocks_come_in_order_and_without_the_null_block() -> None:
    """A new pool hands out block 1 first and never block 0."""
    pool = small_pool()

    refs = pool.allocate(*ALICE, pool.capacity)

    assert ids(refs) == list(range(1, BLOCK_COUNT))
    assert refs.generations.tolist() == [1] * 9


def test_the_last_freed_block_comes_first_and_its_generation_grows_by_two() -> None:
    """Free and allocate each add one to a generation, so the old ref is stale."""
    pool = small_pool()
    first = pool.allocate(*ALICE, 3)
    pool.free(*ALICE, first[1])

    again = pool.allocate(*BOB, 1)

    assert (ids(again), again.generations.tolist()) == ([2], [3])
    with pytest.raises(GenerationStaleError) as refused:
        pool.retain(*ALICE, first)
    assert (refused.value.field, refused.value.metadata["row"]) == ("blocks", "1")


def test_blank_blocks_go_before_committed_ones() -> None:
    """Nothing is evicted while a blank block is left."""
    pool = small_pool()
    cached(pool, b"a", b"b")

    pool.allocate(*BOB, 7)

    assert pool.usage().evictable == 2
    assert pool.lookup(*BOB, "m", [b"a"]) is not None


def test_the_least_recently_used_block_is_evicted_first() -> None:
    """A lookup makes a block recent, and what was evicted is no longer found."""
    pool = small_pool()
    refs = cached(pool, b"a", b"b", b"c")
    hit = pool.lookup(*ALICE, "m", [b"a"])
    assert hit is not None
    pool.free(*ALICE, hit.block)
    pool.allocate(*BOB, 6)

    taken = pool.allocate(*BOB, 1)

    assert (ids(taken), taken.generations.tolist()) == ([int(refs.block_ids[1])], [3])
    assert pool.prefixes.find_all("m", [b"a", b"b", b"c"]) == ids(refs[np.array([0, 2])])


def test_exhaustion_is_told_with_its_numbers_and_takes_nothing() -> None:
    """An allocation that cannot be met whole is refused whole."""
    pool = small_pool()
    cached(pool, b"a", b"b")
    pool.allocate(*BOB, 5)

    with pytest.raises(PoolExhaustedError) as refused:
        pool.allocate(*ALICE, 5)

    assert refused.value.metadata == {"free": "2", "evictable": "2", "requested": "5"}
    assert refused.value.retry_after is not None
    assert (pool.usage().free, pool.usage().evictable) == (2, 2)


def test_no_retry_is_advised_for_more_than_the_pool_has() -> None:
    """A request above the capacity cannot be met later either."""
    pool = small_pool()

    with pytest.raises(PoolExhaustedError) as refused:
        pool.allocate(*ALICE, pool.capacity + 1)

    assert refused.value.retry_after is None


def test_a_negative_count_is_refused() -> None:
    """A negative count would give blocks back that nobody had."""
    pool = small_pool()

    with pytest.raises(BadFieldError):
        pool.allocate(*ALICE, -1)


@pytest.mark.parametrize("block_id", [0, -1, BLOCK_COUNT, 2**62, -(2**62)])
def test_ids_outside_the_pool_are_out_of_range(block_id: int) -> None:
    """The null block and ids that do not exist are refused, however large, and before stale ones."""
    pool = small_pool()

    with pytest.raises(BlockIndexOutOfRangeError) as refused:
        pool.free(*ALICE, BlockRefs.of([1, block_id], [9, 1]))

    assert refused.value.metadata["row"] == "1"


def test_a_free_block_is_stale_at_any_generation() -> None:
    """The generation of a block that is free is no one's ref."""
    pool = small_pool()

    with pytest.raises(GenerationStaleError):
        pool.retain(*ALICE, BlockRefs.of([1], [0]))
