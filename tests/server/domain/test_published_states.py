"""Guarantee: only what was written is found: a state is published when its pass was committed, never when scheduled."""

import numpy as np
from numpy.typing import NDArray

from statepool_server.pool import Pool, PoolConfig
from statepool_server.sequences.requests import Admissions, Commits, Schedules, StepRequest
from support.small_pool import ALICE, BLOCK_TOKENS, BOB


def ints(*values: int) -> NDArray[np.int64]:
    """Makes a column."""
    return np.array(values, np.int64)


def pool_of_two() -> Pool:
    """Builds a pool with two sessions."""
    pool = Pool(PoolConfig(block_count=10, block_tokens=BLOCK_TOKENS, num_spec=2))
    pool.create_session("alice", 100, False, 0)
    pool.create_session("bob", 200, False, 0)
    return pool


def prefill(pool: Pool, by_worker: bool = False) -> None:
    """Admits sequence 1 and schedules its first block."""
    admissions = Admissions(ints(1), ints(8), ints(100), ints(0, 0), (), ("m",))
    schedules = Schedules(ints(1), ints(BLOCK_TOKENS), ints(0))
    outcome = pool.step(*ALICE, StepRequest(1, by_worker=by_worker, admissions=admissions, schedules=schedules))
    if outcome.work is not None:
        pool.finish_step_work(outcome.work)


def commit() -> Commits:
    """Commits the pass, with the hash of its boundary."""
    return Commits(ints(1), ints(1), ints(0), ints(BLOCK_TOKENS), (b"h",))


def is_found(pool: Pool) -> bool:
    """Tells whether a stranger finds the boundary."""
    return pool.lookup(*BOB, "m", [b"h"]) is not None


def test_scheduled_pass_is_not_found() -> None:
    """Before its commit a pass has published nothing."""
    pool = pool_of_two()
    prefill(pool)

    assert not is_found(pool)


def test_finish_between_schedule_and_commit() -> None:
    """A sequence that is aborted leaves no block behind that could be found, and all are free when it is settled."""
    pool = pool_of_two()
    prefill(pool)

    pool.step(*ALICE, StepRequest(2, 1, finishes=ints(1)))

    assert not is_found(pool)
    assert pool.usage().free == pool.capacity


def test_session_that_ends_between_schedule_and_commit() -> None:
    """So does a session that expires."""
    pool = pool_of_two()
    prefill(pool)

    pool.expire_sessions(150)

    assert not is_found(pool)
    assert pool.usage().free == pool.capacity


def test_committed_pass_is_found() -> None:
    """A commit of a settled pass publishes its boundary at once, also for admissions of the same step."""
    pool = pool_of_two()
    prefill(pool)
    same = Admissions(ints(2), ints(8), ints(100), ints(0, 1), (b"h",), ("m",))

    outcome = pool.step(*ALICE, StepRequest(2, 1, commits=commit(), admissions=same))

    assert outcome.published == 1
    assert outcome.admitted_tokens.tolist() == [BLOCK_TOKENS]
    assert is_found(pool)


def test_commit_of_a_pass_that_is_not_settled() -> None:
    """While other ranks may still write it, a committed state is not found; settlement publishes it."""
    pool = pool_of_two()
    prefill(pool)

    pool.step(*ALICE, StepRequest(2, 0, commits=commit()))
    before = is_found(pool)
    pool.step(*ALICE, StepRequest(3, 2))

    assert not before
    assert is_found(pool)


def test_dropped_blocks_wait_for_settlement() -> None:
    """Blocks of an aborted pass that may still be written are not free before it is settled."""
    pool = pool_of_two()
    prefill(pool, by_worker=True)

    pool.step(*ALICE, StepRequest(2, 0, finishes=ints(1)))
    held = pool.usage().held
    pool.step(*ALICE, StepRequest(3, 1))

    assert held == 3
    assert pool.usage().free == pool.capacity


def test_state_that_is_still_copied() -> None:
    """A boundary that a copy moves to its column is found when the copy is done, not before."""
    pool = pool_of_two()
    prefill(pool)
    drafted = Schedules(ints(1), ints(3), ints(2))
    for number, step in enumerate((StepRequest(2, 1, commits=commit(), schedules=drafted),), start=2):
        outcome = pool.step(*ALICE, step)
        assert outcome.step == number
        assert outcome.work is not None
        pool.finish_step_work(outcome.work)
    reached = Commits(ints(1), ints(3))
    onwards = pool.step(*ALICE, StepRequest(3, 2, commits=reached, schedules=drafted))
    if onwards.work is not None:
        pool.finish_step_work(onwards.work)
    boundary = Commits(ints(1), ints(2), ints(0), ints(2 * BLOCK_TOKENS), (b"g",))

    copied = pool.step(*ALICE, StepRequest(4, 3, commits=boundary))
    before = pool.lookup(*BOB, "m", [b"g"])
    assert copied.work is not None
    published = pool.finish_step_work(copied.work)

    assert before is None
    assert published == 1
    assert pool.lookup(*BOB, "m", [b"g"]) is not None


def test_table_of_a_long_sequence_is_small() -> None:
    """A million columns are a million nulls, none of which is stored."""
    pool = Pool(PoolConfig(block_count=10, block_tokens=1))
    pool.create_session("alice", 100, False, 0)
    admissions = Admissions(ints(1), ints(10**6), ints(0), ints(0, 0), (), ("m",))
    pool.step(*ALICE, StepRequest(1, admissions=admissions, schedules=Schedules(ints(1), ints(10**6), ints(0))))

    rows = pool.list_sequences(1, 0, 10)

    assert rows.table_lengths.tolist() == [10**6]
    assert np.array_equal(rows.entry_columns, [10**6 - 1])
