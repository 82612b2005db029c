"""Guarantee: a block is anybody's to share once it is committed, its one owner's before, and free after the last."""

import pytest

from statepool.errors import BlockNotOwnedError
from statepool.refs import BlockRefs
from statepool_server.blocks import BlockState
from statepool_server.integrity import check_integrity
from support.small_pool import ALICE, BOB, cached, commit, ids, small_pool


def test_an_uncommitted_block_cannot_be_shared() -> None:
    """Another session can neither retain nor free a block before it is committed."""
    pool = small_pool()
    refs = pool.allocate(*ALICE, 2)

    for call in (pool.retain, pool.free):
        with pytest.raises(BlockNotOwnedError) as refused:
            call(*BOB, refs)
        assert refused.value.field == "blocks"


def test_a_committed_block_lives_until_its_last_holder_lets_go() -> None:
    """References of two sessions are counted apart; the last one makes the block evictable."""
    pool = small_pool()
    refs = pool.allocate(*ALICE, 1)
    commit(pool, ALICE, refs, [b"a"])
    pool.retain(*BOB, BlockRefs.concat([refs, refs]))

    pool.free(*ALICE, refs)
    assert pool.usage().evictable == 0
    pool.free(*BOB, BlockRefs.concat([refs, refs]))

    assert pool.usage().evictable == 1


def test_a_sharer_that_retains_again_after_the_first_holder_left() -> None:
    """A session's references to a block are counted in one place, whoever held it first."""
    pool = small_pool()
    refs = pool.allocate(*ALICE, 1)
    commit(pool, ALICE, refs, [b"a"])
    pool.retain(*BOB, refs)
    pool.free(*ALICE, refs)

    pool.retain(*BOB, refs)

    check_integrity(pool)
    pool.free(*BOB, BlockRefs.concat([refs, refs]))
    check_integrity(pool)
    assert pool.usage().evictable == 1


def test_no_more_references_are_given_back_than_held() -> None:
    """Rows that name a block twice count twice, and a free that asks too much frees nothing."""
    pool = small_pool()
    refs = pool.allocate(*ALICE, 2)

    with pytest.raises(BlockNotOwnedError):
        pool.free(*ALICE, BlockRefs.concat([refs, refs[0]]))

    assert pool.usage().held == 2


def test_an_evictable_block_can_be_retained_by_ref() -> None:
    """A ref to a committed block stays good while the block is only evictable."""
    pool = small_pool()
    refs = cached(pool, b"a")

    pool.retain(*BOB, refs)

    assert (pool.usage().evictable, pool.usage().held) == (0, 1)
    assert pool.list_blocks(0, 9, [BlockState.SHARED], BOB[0]).session_ids.tolist() == [BOB[0]]


def test_blocks_of_one_call_are_evicted_in_the_order_of_their_rows() -> None:
    """The first row of a free is the least recently used."""
    pool = small_pool()
    refs = pool.allocate(*ALICE, 3)
    commit(pool, ALICE, refs, [b"a", b"b", b"c"])

    pool.free(*ALICE, refs[2])
    pool.free(*ALICE, refs[:2])

    assert pool.blocks.evictable.block_ids().tolist() == [3, 1, 2]


def test_a_deleted_session_gives_everything_back() -> None:
    """Uncommitted blocks become blank, committed ones evictable, those of others stay."""
    pool = small_pool()
    refs = pool.allocate(*ALICE, 3)
    commit(pool, ALICE, refs[:2], [b"a", b"b"])
    pool.retain(*BOB, refs[0])

    dropped = pool.delete_session(*ALICE)

    usage = pool.usage()
    assert (dropped, usage.held, usage.evictable, usage.free) == (3, 1, 1, 7)
    assert ids(pool.list_blocks(0, 9, [BlockState.SHARED], BOB[0]).refs) == [1]
