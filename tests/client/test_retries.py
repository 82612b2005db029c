"""Guarantee: a client that is refused everything sends a tenth more than it would, and comes back when asked to."""

import time

import pytest

from statepool.errors import (
    IncarnationMismatchError,
    OverloadedError,
    PoolExhaustedError,
    StatepoolError,
    UnavailableError,
)
from statepool.retries import MAX_ATTEMPTS, MAX_SAVED_RETRIES, Attempts, RetryBudget

START = 1000.0


def test_an_outage_gets_a_tenth_more() -> None:
    """Beyond what it had saved, a budget allows one retry per ten calls."""
    budget = RetryBudget(START)
    allowed = 0
    for _ in range(1000):
        budget.called()
        allowed += budget.take(START)

    assert MAX_SAVED_RETRIES + 99 <= allowed <= MAX_SAVED_RETRIES + 100
    assert (budget.calls, budget.retries, budget.refused) == (1000, allowed, 1000 - allowed)


def test_time_fills_the_budget() -> None:
    """A client that rarely calls may retry once a second, and saves up no more than a burst."""
    budget = RetryBudget(START)
    while budget.take(START):
        pass

    assert not budget.take(START + 0.9)
    assert budget.take(START + 1.0)
    assert sum(budget.take(START + 3600.0) for _ in range(100)) == MAX_SAVED_RETRIES


@pytest.mark.parametrize(
    ("error", "is_resumed", "is_retried"),
    [
        (UnavailableError("gone"), False, True),
        (OverloadedError("busy"), False, True),
        (PoolExhaustedError("full", retry_after=0.1), False, False),
        (IncarnationMismatchError("restarted"), False, False),
        (IncarnationMismatchError("restarted"), True, True),
    ],
)
def test_what_is_retried(error: StatepoolError, is_resumed: bool, is_retried: bool) -> None:
    """Only what is UNAVAILABLE, and what a restart has refused once its session is resumed."""
    attempts = Attempts(RetryBudget(time.monotonic()), 60.0)

    assert (attempts.pause_after(error, is_resumed=is_resumed) is not None) == is_retried


def test_a_call_is_sent_a_few_times() -> None:
    """The pauses between its attempts grow."""
    attempts = Attempts(RetryBudget(time.monotonic()), 60.0)

    pauses = [attempts.pause_after(UnavailableError("gone"), is_resumed=False) for _ in range(MAX_ATTEMPTS)]

    assert pauses[-1] is None
    for doubled, pause in enumerate(pauses[:-1]):
        assert pause is not None
        assert 0.025 * 2**doubled <= pause <= 0.05 * 2**doubled


def test_the_server_says_when() -> None:
    """Nobody comes back earlier than asked, nor all at the same moment; who has no time for it does not wait."""
    busy = OverloadedError("busy", retry_after=2.0)
    budget = RetryBudget(time.monotonic())

    pauses = {Attempts(budget, 60.0).pause_after(busy, is_resumed=False) for _ in range(5)}

    assert all(pause is not None and 2.0 < pause <= 2.05 for pause in pauses)
    assert len(pauses) > 1
    assert Attempts(budget, 1.9).pause_after(busy, is_resumed=False) is None


def test_an_attempt_that_waits_for_a_resumed_session_needs_no_budget() -> None:
    """Every call of every resumed session gets through a restart."""
    budget = RetryBudget(time.monotonic())

    pauses = [Attempts(budget, 60.0).pause_after(UnavailableError("x"), is_resumed=True) for _ in range(100)]

    assert None not in pauses
    assert (budget.retries, budget.refused) == (100, 0)
