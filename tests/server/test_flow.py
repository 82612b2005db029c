"""Guarantee: a refusal's hint is the work ahead divided by the rate at which work really ends, within bounds."""

import pytest

from statepool import OverloadedError
from statepool_server.service import flow
from statepool_server.service.flow import LONGEST_HINT_SECONDS, SHORTEST_HINT_SECONDS, Flow, Rate, hint


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        """Tells the time."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Gives the clock that flows look at."""
    clock = Clock()
    monkeypatch.setattr(flow, "time", clock)
    return clock


def _work(work: Flow, clock: Clock, pieces: int, seconds: float) -> None:
    """Does pieces of work, one after the other, with as much time between them."""
    for _ in range(pieces):
        work.begin()
        clock.now += seconds
        work.end()
        clock.now += seconds


def test_rate_is_events_over_time() -> None:
    """From the first event on, however short the time."""
    rate = Rate()
    rate.add(5, 0.05)

    assert rate.seconds_for(10) == pytest.approx(0.1)
    assert rate.seconds_for(0) == 0.0


def test_rate_follows_what_is_new() -> None:
    """After a few windows nothing is left of what was; standing still counts."""
    rate = Rate()
    rate.add(1000, 1.0)
    for _ in range(20):
        rate.add(10, 1.0)
    assert rate.seconds_for(10) == pytest.approx(1.0, rel=0.01)

    rate.add(0, 1.0)

    assert rate.seconds_for(10) > 1.3


def test_nothing_has_ever_ended() -> None:
    """Without an event nothing can be told but the longest hint."""
    rate = Rate()
    rate.add(0, 3.0)

    assert hint(rate.seconds_for(1)) == LONGEST_HINT_SECONDS
    assert hint(0.0) == SHORTEST_HINT_SECONDS


def test_hint_is_the_work_ahead_over_the_rate(clock: Clock) -> None:
    """Four pieces under way, of which one ends every 50 ms: come back in 200 ms; idle time does not count."""
    work = Flow("copies")
    _work(work, clock, 10, 0.05)
    clock.now += 1000
    for _ in range(4):
        work.begin()

    with pytest.raises(OverloadedError, match="4 copies are under way already") as caught:
        work.check(4)

    assert caught.value.retry_after == pytest.approx(0.2)


def test_work_that_nobody_could_wait_for_is_refused(clock: Clock) -> None:
    """Whoever has less than twice the time that the work ahead takes is refused at once, and nobody else."""
    work = Flow("copies")
    work.check(100, 0.001)  # nothing is ahead, and nothing known
    _work(work, clock, 10, 0.05)
    work.check(100, 0.001)  # nothing is ahead
    for _ in range(4):
        work.begin()

    work.check(100)
    work.check(100, 0.41)
    with pytest.raises(OverloadedError, match=r"4 copies are under way, and 0\.39 s are left") as caught:
        work.check(100, 0.39)

    assert caught.value.retry_after == pytest.approx(0.4)


def test_pieces_at_a_time_count_as_many(clock: Clock) -> None:
    """Two at a time, each of 100 ms, are one every 50 ms."""
    work = Flow("copies")
    for _ in range(10):
        work.begin()
        work.begin()
        clock.now += 0.1
        work.end()
        work.end()
    work.begin()
    work.begin()

    assert work.seconds_ahead == pytest.approx(0.1)
