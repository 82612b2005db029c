"""Guarantee: a session's steps are applied once each, in the order of their numbers; a refused one leaves no trace."""

import numpy as np
import pytest

from statepool.errors import BadFieldError, PoolExhaustedError, SessionFencedError, StepOutOfOrderError
from statepool_server.sequences.requests import StepRequest
from support.small_pool import ALICE, BOB
from support.steps import Admit, Commit, Engine, Run, engine_pool


@pytest.mark.parametrize("step", [0, 1, 3, 2**62])
def test_only_the_next_number_is_applied(step: int) -> None:
    """A number that was used, or that skips one, is refused and tells the last one."""
    pool = engine_pool()
    Engine(pool, ALICE).step(admit=[Admit(1)])

    with pytest.raises(StepOutOfOrderError) as refused:
        pool.step(*ALICE, StepRequest(step))

    assert (refused.value.field, refused.value.metadata["last_step"]) == ("step", "1")


def test_sessions_count_apart() -> None:
    """Each begins at 1."""
    pool = engine_pool()
    Engine(pool, ALICE).step()

    assert pool.step(*BOB, StepRequest(1)).step == 1


def test_a_step_cannot_confirm_itself() -> None:
    """The settled step is below the step that names it."""
    pool = engine_pool()

    with pytest.raises(BadFieldError) as refused:
        pool.step(*ALICE, StepRequest(1, settled_step=1))

    assert refused.value.field == "settled_step"


def test_a_refused_step_does_not_use_its_number_up() -> None:
    """The engine preempts and sends the same number again."""
    pool = engine_pool(block_count=3)
    engine = Engine(pool, ALICE)
    engine.step(admit=[Admit(1, 4), Admit(2, 4)], run=[Run(1, 4), Run(2, 4)])
    commits = [Commit(1), Commit(2)]
    with pytest.raises(PoolExhaustedError):
        engine.step(commit=commits, run=[Run(1), Run(2)])

    outcome = engine.step(commit=commits, finish=[2], run=[Run(1)])

    assert outcome.step == 2


def test_a_new_owner_goes_on_where_the_old_one_stopped() -> None:
    """A take-over keeps sequences and numbers, and fences the old owner."""
    pool = engine_pool()
    engine = Engine(pool, ALICE)
    engine.step(admit=[Admit(1, 4)], run=[Run(1, 4)])
    info, _ = pool.create_session("alice", 100, True, 0)

    with pytest.raises(SessionFencedError):
        engine.step(commit=[Commit(1)])
    heir = Engine(pool, (info.session_id, info.epoch))
    heir.last_step = 1
    heir.step(commit=[Commit(1)])

    assert heir.last_step == 2


def test_digests_do_not_depend_on_what_was_refused() -> None:
    """Two servers agree although one of them has refused a step that the other was never asked.

    The digest covered slots of sequences that a refused admission had blanked or added.
    """
    pools = [engine_pool(max_sequences=40), engine_pool(max_sequences=40)]
    engines = [Engine(pool, ALICE) for pool in pools]
    for engine in engines:
        engine.step(admit=[Admit(1, 4)], run=[Run(1, 4)])
        engine.step(commit=[Commit(1)], finish=[1])

    with pytest.raises(PoolExhaustedError):
        engines[0].step(admit=[Admit(i, 4) for i in range(30)], run=[Run(i, 4) for i in range(30)])
    outcomes = [engine.step(admit=[Admit(2, 4)], run=[Run(2, 4)]) for engine in engines]

    assert len(np.unique([outcome.digest for outcome in outcomes])) == 1
    assert pools[0].digest() == pools[1].digest()


def test_digests_tell_steps_apart() -> None:
    """A server that accepted another number of tokens answers another digest, then and ever after."""
    engines = [Engine(engine_pool(num_spec=3), ALICE) for _ in range(2)]
    for engine in engines:
        engine.step(admit=[Admit(1, 8)], run=[Run(1, 4, 3)])

    for engine, accepted in zip(engines, (1, 2), strict=True):
        engine.step(commit=[Commit(1, accepted)])
    digests = {engine.step(finish=[1]).digest for engine in engines}

    assert len(digests) == 2
