"""Guarantee: nothing is reused or published before the step that may still write or read it is settled (rule 11)."""

import pytest

from statepool.errors import BlockBusyError, PoolExhaustedError, StepOutOfOrderError
from support.small_pool import ALICE, BOB
from support.steps import Admit, Commit, Engine, Run, engine_pool


def test_blocks_of_an_aborted_sequence_wait_for_its_pass() -> None:
    """The pass may still write them: they stay held until the step of the pass is settled, and not a step longer."""
    pool = engine_pool(block_count=3)
    engine = Engine(pool, ALICE)
    engine.step(admit=[Admit(1, 5)], run=[Run(1, 5)])
    engine.step(finish=[1], settled=0)

    assert (pool.usage().held, pool.usage().sequences) == (1, 0)
    with pytest.raises(PoolExhaustedError):
        pool.allocate(*BOB, 2)
    engine.step(settled=1)

    assert pool.usage().free == 2


def test_retired_blocks_wait_for_the_pass_before() -> None:
    """A column that the state has left is given up by the next schedule, and reused when the pass before is settled."""
    pool = engine_pool()
    engine = Engine(pool, ALICE, by_worker=True)
    engine.step(admit=[Admit(1, 4)], run=[Run(1, 4)])
    engine.step(commit=[Commit(1)], run=[Run(1, 4)])

    engine.step(commit=[Commit(1)], run=[Run(1, 4)], settled=0)
    assert (engine.table(1)[0], pool.usage().held) == (0, 3)
    engine.step(settled=2)

    assert pool.usage().held == 2


def test_a_synchronous_engine_never_notices() -> None:
    """With every step confirmed, finishes free their blocks in the same message, for its own schedules."""
    pool = engine_pool(block_count=2)
    engine = Engine(pool, ALICE)
    engine.step(admit=[Admit(1, 4)], run=[Run(1, 4)])

    engine.step(finish=[1], admit=[Admit(2, 4)], run=[Run(2, 4)])

    assert pool.usage().held == 1


def test_a_lower_confirmation_is_no_news() -> None:
    """What was settled once stays settled."""
    pool = engine_pool()
    engine = Engine(pool, ALICE)
    engine.step(admit=[Admit(1, 4)], run=[Run(1, 4)])
    engine.step(settled=1)

    engine.step(finish=[1], settled=0)

    assert pool.usage().free == 9


def test_a_state_is_found_when_the_step_that_wrote_it_is_settled() -> None:
    """The commit of an asynchronous engine comes before all ranks are known to have finished."""
    pool = engine_pool()
    engine = Engine(pool, ALICE)
    engine.step(admit=[Admit(1, 5)], run=[Run(1, 4)])

    committed = engine.step(commit=[Commit(1, 1, 4, b"a")], settled=0)
    assert (committed.published, pool.lookup(*BOB, "m", [b"a"])) == (0, None)
    settled = engine.step(settled=1)

    assert settled.published == 1
    assert pool.lookup(*BOB, "m", [b"a"]) is not None


def test_a_step_finds_what_it_settles() -> None:
    """Settlement comes first: an admission of the same message hits the state."""
    pool = engine_pool()
    engine = Engine(pool, ALICE)
    engine.step(admit=[Admit(1, 5)], run=[Run(1, 4)])
    engine.step(commit=[Commit(1, 1, 4, b"a")], settled=0)

    outcome = engine.step(admit=[Admit(2, 5, [b"a"])], settled=1)

    assert outcome.admitted_tokens.tolist() == [4]


def test_a_state_that_the_worker_copies_waits_for_the_step_of_the_copy() -> None:
    """Both its publication and the reuse of its blocks wait for the step that planned the copy, not for the pass."""
    pool = engine_pool(num_spec=3)
    engine = Engine(pool, ALICE, by_worker=True)
    engine.step(admit=[Admit(1, 2)], run=[Run(1, 2)])
    engine.step(commit=[Commit(1)], run=[Run(1, 4, 3)])

    copied = engine.step(commit=[Commit(1, 2, 4, b"a")], finish=[1], settled=2)
    assert (copied.work, len(copied.post_copies), copied.published) == (None, 1, 0)
    assert pool.usage().held == 5
    settled = engine.step(settled=3)

    assert (settled.published, pool.usage().evictable, pool.usage().held) == (1, 1, 0)


def test_the_server_does_not_copy_what_is_not_settled() -> None:
    """It runs no stream of the worker's, so a state whose pass may still run is refused, with the row."""
    pool = engine_pool()
    engine = Engine(pool, ALICE)
    engine.step(admit=[Admit(1, 4), Admit(2, 3)], run=[Run(1, 4), Run(2, 3)])

    with pytest.raises(StepOutOfOrderError) as refused:
        engine.step(commit=[Commit(2), Commit(1)], run=[Run(2, 1), Run(1, 1)], settled=0)

    assert refused.value.field == "schedules.sequence_ids"
    assert (refused.value.metadata["row"], refused.value.metadata["settled_step"]) == ("1", "0")


def test_the_worker_copies_what_is_not_settled() -> None:
    """Its stream orders the copy behind the pass, so overlapping half-batches are taken."""
    pool = engine_pool()
    engine = Engine(pool, ALICE, by_worker=True)
    engine.step(admit=[Admit(1, 4), Admit(2, 4)], run=[Run(1, 4)])
    engine.step(run=[Run(2, 4)], settled=0)

    outcome = engine.step(commit=[Commit(1)], run=[Run(1, 4)], settled=0)

    assert outcome.pre_copies.src_columns.tolist() == [0]


def test_a_dropped_block_can_still_be_published() -> None:
    """A finish right after an unsettled commit does not lose the state: it is found when the step is settled."""
    pool = engine_pool()
    engine = Engine(pool, ALICE)
    engine.step(admit=[Admit(1, 4)], run=[Run(1, 4)])

    engine.step(commit=[Commit(1, 1, 4, b"a")], finish=[1], settled=0)
    assert pool.usage().evictable == 0
    engine.step(settled=1)

    assert pool.usage().evictable == 1


def test_a_block_that_is_being_written_is_not_published() -> None:
    """Neither by the commit nor by the settlement: the step is refused until the write is done.

    Both made a block immutable and findable while WriteBlocks had it.
    """
    pool = engine_pool()
    engine = Engine(pool, ALICE)
    blocks = engine.step(admit=[Admit(1, 5)], run=[Run(1, 4)]).tables.blocks

    write = pool.pin_write(*ALICE, blocks)
    with pytest.raises(BlockBusyError) as refused:
        engine.step(commit=[Commit(1, 1, 4, b"a")])
    assert (refused.value.field, refused.value.metadata["row"]) == ("commits.hash_rows", "0")
    pool.unpin(write)
    engine.step(commit=[Commit(1, 1, 4, b"a")], settled=0)
    write = pool.pin_write(*ALICE, blocks)
    with pytest.raises(BlockBusyError) as refused:
        engine.step(settled=1)
    assert refused.value.field == "settled_step"
    pool.unpin(write)

    assert engine.step(settled=1).published == 1


def test_a_session_that_ends_takes_everything_with_it() -> None:
    """Blocks that wait for settlement are given up with the session, and what it had to publish is forgotten."""
    pool = engine_pool()
    engine = Engine(pool, ALICE)
    engine.step(admit=[Admit(1, 4)], run=[Run(1, 4)])
    engine.step(commit=[Commit(1, 1, 4, b"a")], finish=[1], settled=0)

    pool.delete_session(*ALICE)

    assert (pool.usage().free, pool.usage().committed, pool.usage().sequences) == (9, 0, 0)
