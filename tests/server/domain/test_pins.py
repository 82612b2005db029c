"""Guarantee: a block in use is neither reused nor written by another until the last pin is taken back."""

import pytest

from statepool.errors import BadFieldError, BlockBusyError, BlockNotOwnedError, BlockNotWritableError
from statepool.errors import ColumnLengthMismatchError as LengthError
from statepool.refs import BlockRefs
from support.small_pool import ALICE, BOB, cached, commit, ids, small_pool


def test_a_block_freed_while_pinned_is_released_at_the_last_unpin() -> None:
    """It leaves its owner at once, and is blank only when nobody uses it."""
    pool = small_pool()
    refs = pool.allocate(*ALICE, 1)
    pins = [pool.pin_read(*ALICE, refs), pool.pin_read(*ALICE, refs)]
    pool.free(*ALICE, refs)

    for pin in pins:
        assert (pool.usage().releasing, pool.usage().free) == (1, 8)
        pool.unpin(pin)

    assert (pool.usage().releasing, pool.usage().free) == (0, 9)


def test_an_evictable_block_that_is_read_is_not_evicted() -> None:
    """It is passed over while the pin lasts, and the most recently used one afterwards."""
    pool = small_pool()
    refs = cached(pool, b"a", b"b")
    pin = pool.pin_read(*BOB, refs[0])

    taken = pool.allocate(*BOB, 8)

    assert 1 not in ids(taken)
    assert pool.usage().evictable == 0
    pool.unpin(pin)
    assert pool.blocks.evictable.block_ids().tolist() == [1]


def test_there_is_one_writer() -> None:
    """Neither a second writer, nor a reader, nor a writer beside readers."""
    pool = small_pool()
    refs = pool.allocate(*ALICE, 2)
    pool.pin_write(*ALICE, refs[0])
    pool.pin_read(*ALICE, refs[1])

    for call, block in ((pool.pin_write, refs[0]), (pool.pin_read, refs[0]), (pool.pin_write, refs[1])):
        with pytest.raises(BlockBusyError):
            call(*ALICE, block)

    assert pool.usage().busy == 2


def test_only_the_owner_writes_and_only_before_the_commit() -> None:
    """A committed block is immutable; what is not committed is nobody else's to read or write."""
    pool = small_pool()
    refs = pool.allocate(*ALICE, 2)
    commit(pool, ALICE, refs[0], [b"a"])

    with pytest.raises(BlockNotWritableError):
        pool.pin_write(*ALICE, refs[0])
    for call in (pool.pin_write, pool.pin_read):
        with pytest.raises(BlockNotOwnedError):
            call(*BOB, refs[1])
    pool.pin_read(*BOB, refs[0])

    assert pool.usage().busy == 1


def test_copies_may_read_what_they_write() -> None:
    """A swap within one call is one writer per block; a committed source of another session is read."""
    pool = small_pool()
    own = pool.allocate(*ALICE, 2)
    other = cached(pool, b"a")

    swap = BlockRefs.concat([own[1], own[0]])
    pin = pool.pin_copy(*ALICE, swap, own, BlockRefs.concat([other, other]))

    assert (pin.readers.tolist(), sorted(pin.writers.tolist())) == (ids(other), [1, 2])
    pool.unpin(pin)
    assert (pool.usage().busy, pool.usage().evictable) == (0, 1)


def test_bad_copies_name_the_field() -> None:
    """Columns of one length, no destination twice, sources that may be read."""
    pool = small_pool()
    own, foreign = pool.allocate(*ALICE, 2), pool.allocate(*BOB, 1)
    twice = BlockRefs.concat([own[0], own[0]])

    for src, dst, temporal_src, error, field in (
        (own[0], own, own, LengthError, "src"),
        (own, own, own[0], LengthError, "temporal_src"),
        (own, twice, own, BadFieldError, "dst"),
        (foreign, own[0], own[0], BlockNotOwnedError, "src"),
        (own[0], own[1], foreign, BlockNotOwnedError, "temporal_src"),
    ):
        with pytest.raises(error) as refused:
            pool.pin_copy(*ALICE, src, dst, temporal_src)
        assert refused.value.field == field

    assert pool.usage().busy == 0
