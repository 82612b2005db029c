"""Guarantee: a step finds all its blocks or changes nothing, and tells the numbers; on request it admits what fits."""

import pytest

from statepool.errors import PoolExhaustedError, QuotaExceededError
from support.small_pool import ALICE, BOB, cached
from support.steps import Admit, Commit, Engine, Run, engine_pool, publish


def facts(error: PoolExhaustedError) -> tuple[int, ...]:
    """Reads requested, free and evictable."""
    return tuple(int(error.metadata[name]) for name in ("requested", "free", "evictable"))


def test_an_exhausted_step_changes_nothing_and_tells_why() -> None:
    """What it needs, what is free and what is evictable; a retry may help."""
    pool = engine_pool()
    cached(pool, b"x")
    pool.allocate(*BOB, 7)
    before = pool.digest()

    with pytest.raises(PoolExhaustedError) as refused:
        Engine(pool, ALICE).step(admit=[Admit(i, 4) for i in range(3)], run=[Run(i, 4) for i in range(3)])

    assert facts(refused.value) == (3, 1, 1)
    assert (refused.value.field, refused.value.retry_after) == ("schedules", 0.1)
    assert pool.digest() == before


def test_a_retry_cannot_help_where_the_pool_is_too_small() -> None:
    """More blocks than there are at all: no hint to try again."""
    pool = engine_pool(block_count=3)

    with pytest.raises(PoolExhaustedError) as refused:
        Engine(pool, ALICE).step(admit=[Admit(i) for i in range(3)], run=[Run(i) for i in range(3)])

    assert (facts(refused.value), refused.value.retry_after) == ((3, 2, 0), None)


def test_what_the_step_gives_back_counts() -> None:
    """Blocks of its finishes and retirements may be handed out by the step itself."""
    pool = engine_pool(block_count=4)
    engine = Engine(pool, ALICE)
    engine.step(admit=[Admit(1, 4), Admit(2, 4)], run=[Run(1, 4), Run(2, 4)])
    engine.step(commit=[Commit(1), Commit(2)], run=[Run(1, 1)])

    outcome = engine.step(
        commit=[Commit(1)], finish=[2], admit=[Admit(3, 4), Admit(4, 4)], run=[Run(3), Run(4), Run(1)]
    )

    assert (len(outcome.tables.rows), pool.usage().free) == (2, 0)


def test_finished_blocks_that_can_be_found_are_evictable_ones() -> None:
    """The numbers are those after the finishes: a committed block is not free.

    It was counted as free.
    """
    pool = engine_pool(block_count=3)
    engine = Engine(pool, ALICE)
    engine.step(admit=[Admit(1, 4)], run=[Run(1, 4)])

    with pytest.raises(PoolExhaustedError) as refused:
        engine.step(
            commit=[Commit(1, 1, 4, b"a")],
            finish=[1],
            admit=[Admit(i) for i in (2, 3, 4)],
            run=[Run(i) for i in (2, 3, 4)],
        )

    assert facts(refused.value) == (3, 1, 1)


def test_a_hit_takes_an_evictable_block() -> None:
    """It counts as one that is requested, but once only, however many sequences hit it."""
    pool = engine_pool(block_count=5)
    engine = Engine(pool, ALICE)
    publish(engine, 1, b"a")
    pool.allocate(*BOB, 2)
    admits = [Admit(i, 5, [b"a"]) for i in (2, 3)]

    with pytest.raises(PoolExhaustedError) as refused:
        engine.step(admit=[*admits, Admit(4)], run=[Run(2), Run(3), Run(4)])

    assert facts(refused.value) == (4, 1, 1)


def test_a_hit_of_a_block_in_use_takes_nothing() -> None:
    """A block that is only being read is not evictable, so a hit of it costs no block.

    It was charged as if it were, and the step refused.
    """
    pool = engine_pool(block_count=3)
    engine = Engine(pool, ALICE)
    publish(engine, 1, b"a")
    hit = pool.lookup(*BOB, "m", [b"a"])
    assert hit is not None
    pool.pin_read(*BOB, hit.block)
    pool.free(*BOB, hit.block)

    outcome = engine.step(admit=[Admit(2, 5, [b"a"])], run=[Run(2)])

    assert (outcome.admitted_tokens.tolist(), outcome.usage.free) == ([4], 0)


def test_partial_admission_admits_the_first_ones() -> None:
    """As many, from the first on, as there are blocks for; schedules of the others are passed over."""
    pool = engine_pool()
    pool.allocate(*BOB, 7)
    engine = Engine(pool, ALICE)

    outcome = engine.step(admit=[Admit(i, 4) for i in (5, 6, 7)], run=[Run(i, 4) for i in (7, 5, 6)], partial=True)

    assert outcome.admitted_tokens.tolist() == [0, 0]
    assert outcome.tables.rows.tolist() == [1, 2]
    assert (pool.usage().sequences, pool.usage().free) == (2, 0)


def test_partial_admission_may_admit_none() -> None:
    """The step is applied all the same."""
    pool = engine_pool()
    pool.allocate(*BOB, 9)

    outcome = Engine(pool, ALICE).step(admit=[Admit(1)], run=[Run(1)], partial=True)

    assert (len(outcome.admitted_tokens), outcome.usage.sequences) == (0, 0)


def test_partial_admission_leaves_imports_with_their_session() -> None:
    """A block whose sequence was not admitted is not taken over."""
    pool = engine_pool()
    engine = Engine(pool, ALICE)
    refs = pool.allocate(*ALICE, 1)
    pool.allocate(*BOB, 7)
    imported = 4, (int(refs.block_ids[0]), int(refs.generations[0]))

    outcome = engine.step(admit=[Admit(1), Admit(2, 9, imported=imported)], run=[Run(1), Run(2)], partial=True)
    pool.free(*ALICE, refs)

    assert outcome.admitted_tokens.tolist() == [0]


def test_sequences_that_run_already_are_not_passed_over() -> None:
    """Where they do not find their blocks, the engine must preempt, partial admission or not."""
    pool = engine_pool(block_count=3)
    engine = Engine(pool, ALICE)
    engine.step(admit=[Admit(1, 4), Admit(2, 4)], run=[Run(1, 4), Run(2, 4)])

    with pytest.raises(PoolExhaustedError) as refused:
        engine.step(commit=[Commit(1), Commit(2)], admit=[Admit(3)], run=[Run(1), Run(2), Run(3)], partial=True)

    assert facts(refused.value) == (3, 0, 0)


def test_a_step_keeps_to_its_room() -> None:
    """Where blocks are plenty and the session's are bounded, a step that needs more changes nothing, and says so."""
    pool = engine_pool()
    before = pool.digest()
    engine = Engine(pool, ALICE)

    with pytest.raises(QuotaExceededError, match=r"the step needs 3 blocks.* 2 more") as refused:
        engine.step(admit=[Admit(i) for i in range(3)], run=[Run(i) for i in range(3)], room=2)

    assert (refused.value.field, refused.value.metadata["room"]) == ("schedules", "2")
    assert pool.digest() == before
    outcome = engine.step(admit=[Admit(i) for i in range(3)], run=[Run(i) for i in range(3)], partial=True, room=2)
    assert len(outcome.tables.rows) == 2


def test_a_hit_takes_room() -> None:
    """A block that is found is held as one that is new: it counts, whoever else holds it."""
    pool = engine_pool()
    cached(pool, b"x")
    found = Admit(1, 9, hashes=(b"x",))

    with pytest.raises(QuotaExceededError):
        Engine(pool, ALICE).step(admit=[found], room=0)

    Engine(pool, ALICE).step(admit=[found], room=1)
    assert pool.get_session(ALICE[0]).block_count == 1


def test_what_the_step_gives_back_makes_room() -> None:
    """A sequence may begin in the room of one that ends, also where the session holds more than it may."""
    pool = engine_pool()
    engine = Engine(pool, ALICE)
    engine.step(admit=[Admit(1, 4), Admit(2, 4)], run=[Run(1, 4), Run(2, 4)])
    engine.step(commit=[Commit(1), Commit(2)])

    with pytest.raises(QuotaExceededError):
        engine.step(finish=[1], admit=[Admit(3, 4), Admit(4, 4)], run=[Run(3, 4), Run(4, 4)], room=0)
    assert len(engine.step(finish=[1], admit=[Admit(3, 4)], run=[Run(3, 4)], room=0).tables.rows) == 1
    with pytest.raises(QuotaExceededError):
        engine.step(finish=[2], admit=[Admit(5, 4)], run=[Run(5, 4)], room=-1)
