"""Guarantee: lookup finds the deepest prefix and holds it at once; evicted prefixes are not found."""

import numpy as np

from statepool.refs import BlockRefs
from statepool_server.prefix import PrefixIndex
from support.small_pool import ALICE, BOB, cached, commit, ids, small_pool

NONE = BlockRefs.empty()


def test_the_deepest_known_hash_wins_and_is_held() -> None:
    """One reference is taken in the same step, so the block cannot be evicted any more."""
    pool = small_pool()
    refs = cached(pool, b"a", b"b")

    hit = pool.lookup(*BOB, "m", [b"a", b"b", b"c"])

    assert hit is not None
    assert (hit.hash_index, hit.block) == (1, refs[1])
    assert pool.get_session(BOB[0]).block_count == 1
    assert pool.usage().evictable == 1


def test_nothing_known_is_no_hit() -> None:
    """No hash, unknown hashes and another namespace find nothing and take nothing."""
    pool = small_pool()
    cached(pool, b"a")

    assert pool.lookup(*BOB, "m", []) is None
    assert pool.lookup(*BOB, "m", [b"x"]) is None
    assert pool.lookup(*BOB, "n", [b"a"]) is None
    assert pool.usage().held == 0


def test_an_evicted_block_that_nobody_holds_is_blank() -> None:
    """By ref and by hash, each block counted once, unknown hashes passed over."""
    pool = small_pool()
    refs = cached(pool, b"a", b"b", b"c")

    eviction = pool.evict(*BOB, refs[:2], "m", [b"b", b"c", b"x"])

    assert (eviction.unlisted, eviction.freed) == (3, 3)
    assert pool.usage().free == 9


def test_an_evicted_block_that_is_held_stays_immutable_until_freed() -> None:
    """It cannot be found or committed anew, and is blank after its last reference."""
    pool = small_pool()
    refs = pool.allocate(*ALICE, 1)
    commit(pool, ALICE, refs, [b"a"])

    eviction = pool.evict(*BOB, NONE, "m", [b"a"])

    assert (eviction.unlisted, eviction.freed) == (1, 0)
    assert pool.lookup(*BOB, "m", [b"a"]) is None
    assert pool.blocks.committed[1]
    pool.free(*ALICE, refs)
    assert pool.usage().free == 9


def test_an_evicted_hash_can_be_committed_by_another_block() -> None:
    """The name is free again."""
    pool = small_pool()
    cached(pool, b"a")
    pool.evict(*BOB, NONE, "m", [b"a"])
    pool.allocate(*ALICE, 1)
    refs = pool.allocate(*BOB, 1)

    result = commit(pool, BOB, refs, [b"a"])

    assert ids(result.holders) == [2]
    assert len(result.duplicate_rows) == 0


def test_blocks_of_several_namespaces_are_removed_in_one_batch() -> None:
    """The index tells them apart, forgets empty namespaces and keeps the rest."""
    index = PrefixIndex(8)
    index.insert("m", [b"a", b"b"], np.array([1, 2]))
    index.insert("n", [b"a", b"b"], np.array([3, 4]))

    index.remove(np.array([1, 3, 2]))

    assert list(index.items()) == [("n", b"b", 4)]
    assert len(index) == 1
    assert index.name_of(1) is None
