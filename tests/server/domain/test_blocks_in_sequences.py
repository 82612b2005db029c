"""Guarantee: only steps give up the blocks of a table, which outlive it where the session holds them otherwise."""

import pytest

from statepool.errors import BlockInSequenceError, QuotaExceededError, SequenceExistsError
from statepool.refs import BlockRefs
from support.small_pool import ALICE, BOB
from support.steps import Admit, Commit, Engine, Run, engine_pool, publish


def test_a_block_of_a_table_cannot_be_freed() -> None:
    """Neither alone nor among others; the error names it."""
    pool = engine_pool()
    spare = pool.allocate(*ALICE, 1)
    blocks = Engine(pool, ALICE).step(admit=[Admit(1)], run=[Run(1)]).tables.blocks

    with pytest.raises(BlockInSequenceError) as refused:
        pool.free(*ALICE, BlockRefs.concat([spare, blocks]))

    assert (refused.value.field, refused.value.metadata["block"]) == ("blocks", str(blocks.block_ids[0]))
    assert pool.usage().held == 2


def test_a_retained_block_outlives_its_sequence() -> None:
    """The session's own reference is its to give up, before the finish and after."""
    pool = engine_pool()
    engine = Engine(pool, ALICE)
    blocks = engine.step(admit=[Admit(1)], run=[Run(1)]).tables.blocks

    pool.retain(*ALICE, blocks)
    pool.free(*ALICE, blocks)
    pool.retain(*ALICE, blocks)
    engine.step(finish=[1])

    assert pool.usage().held == 1
    pool.free(*ALICE, blocks)
    assert pool.usage().free == 9


def test_a_block_that_waits_for_settlement_cannot_be_freed() -> None:
    """The table is gone, but a pass may still write the block."""
    pool = engine_pool()
    engine = Engine(pool, ALICE)
    blocks = engine.step(admit=[Admit(1)], run=[Run(1)]).tables.blocks
    engine.step(finish=[1], settled=0)

    with pytest.raises(BlockInSequenceError):
        pool.free(*ALICE, blocks)

    assert pool.usage().held == 1


def test_a_hit_is_shared() -> None:
    """Sequences of several sessions hold the block; each reference is dropped by its own."""
    pool = engine_pool()
    alice, bob = Engine(pool, ALICE), Engine(pool, BOB)
    publish(alice, 1, b"a")

    for engine in (alice, bob):
        engine.step(admit=[Admit(2, 5, [b"a"]), Admit(3, 5, [b"a"])])
    assert pool.blocks.references[alice.table(2)[0]] == 4
    pool.delete_session(*ALICE)
    bob.step(finish=[2, 3])

    assert (pool.usage().evictable, pool.usage().free) == (1, 8)


def test_there_is_a_quota_of_sequences() -> None:
    """Of all sessions together; those that the step finishes make room."""
    pool = engine_pool(max_sequences=3)
    alice, bob = Engine(pool, ALICE), Engine(pool, BOB)
    alice.step(admit=[Admit(1), Admit(2)])

    with pytest.raises(QuotaExceededError) as refused:
        bob.step(admit=[Admit(1), Admit(2)])
    assert refused.value.metadata["limit"] == "3"
    bob.step(admit=[Admit(1)])
    alice.step(finish=[1], admit=[Admit(3)])
    pool.delete_session(*ALICE)
    bob.step(admit=[Admit(2), Admit(3)])

    assert pool.usage().sequences == 3


def test_a_preempted_sequence_comes_back_under_its_id() -> None:
    """In the message that ends it, and with what it has published; a live one's id is taken."""
    pool = engine_pool()
    engine = Engine(pool, ALICE)
    engine.step(admit=[Admit(1, 9)], run=[Run(1, 4)])
    with pytest.raises(SequenceExistsError):
        engine.step(admit=[Admit(1)])

    outcome = engine.step(commit=[Commit(1, 1, 4, b"a")], finish=[1], admit=[Admit(1, 9, [b"a"])], run=[Run(1, 4)])

    assert outcome.admitted_tokens.tolist() == [4]
    assert len(engine.table(1)) == 2
