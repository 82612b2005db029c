"""An alarm gives up exactly those operations that have not ended by their deadlines, with few timers."""

import asyncio
import gc
import time
import weakref
from typing import Any

import pytest

from statepool.aio.alarm import Alarm

SOON, LATE = 0.05, 60.0
"""Seconds from now."""


def seconds_from_now(seconds: float) -> float:
    """Computes a deadline."""
    return time.monotonic() + seconds


async def passing(result: str) -> str:
    """Ends at once."""
    return result


async def test_result_and_error_pass() -> None:
    """An operation that ends in time gives its result, or raises its own error."""
    alarm = Alarm()

    assert await alarm.within(seconds_from_now(LATE), passing("done")) == "done"
    with pytest.raises(ValueError, match="its own"):
        await alarm.within(seconds_from_now(LATE), failing())


async def failing() -> None:
    """Fails at once."""
    raise ValueError("its own")


async def test_deadline_that_passes() -> None:
    """A late operation is cancelled and its caller gets a TimeoutError; nothing of it is left in the task."""
    alarm, operation, started = Alarm(), asyncio.ensure_future(asyncio.Event().wait()), time.monotonic()

    with pytest.raises(TimeoutError):
        await alarm.within(seconds_from_now(SOON), operation)

    assert time.monotonic() - started >= SOON
    assert operation.cancelled()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    assert await alarm.within(seconds_from_now(LATE), passing("next")) == "next"


@pytest.mark.parametrize("seconds", [0.0, -1.0])
async def test_deadline_that_has_passed(seconds: float) -> None:
    """An operation whose deadline is over when it begins is given up as soon as it waits."""
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(Alarm().within(seconds_from_now(seconds), asyncio.Event().wait()), LATE)


async def test_deadline_before_the_one_that_set_the_timer() -> None:
    """A deadline that is nearer than the timer holds all the same."""
    alarm, started = Alarm(), time.monotonic()
    await alarm.within(seconds_from_now(LATE), passing("done"))

    with pytest.raises(TimeoutError):
        await alarm.within(seconds_from_now(SOON), asyncio.Event().wait())

    assert time.monotonic() - started < LATE / 2


async def test_deadline_after_the_one_that_set_the_timer() -> None:
    """An operation that is under way when the timer of a former deadline runs out goes on until its own."""
    alarm, started = Alarm(), time.monotonic()
    await alarm.within(seconds_from_now(SOON), passing("done"))

    assert await alarm.within(seconds_from_now(LATE), asyncio.sleep(2 * SOON, "slept")) == "slept"
    with pytest.raises(TimeoutError):
        await alarm.within(started + 4 * SOON, asyncio.Event().wait())

    assert time.monotonic() - started >= 4 * SOON


async def test_nothing_under_way_when_the_timer_runs_out() -> None:
    """A deadline of an operation that has ended disturbs nobody."""
    alarm = Alarm()
    await alarm.within(seconds_from_now(SOON), passing("done"))

    await asyncio.sleep(2 * SOON)

    assert await alarm.within(seconds_from_now(LATE), passing("next")) == "next"


async def test_cancellation_from_outside() -> None:
    """Who cancels the caller's task gets a cancelled task, also when the deadline passes in the same moment."""
    for seconds in (LATE, -1.0):
        task = asyncio.ensure_future(Alarm().within(seconds_from_now(seconds), asyncio.Event().wait()))
        for _ in range(2):  # then it waits, and where its deadline is over, the alarm rings in this round of the loop
            await asyncio.sleep(0)
        task.cancel()

        await asyncio.wait([task])

        assert task.cancelled(), f"deadline in {seconds} s"


async def test_operations_share_a_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operations that follow one another, each with a later deadline, need one timer."""
    loop, delays = asyncio.get_running_loop(), list[float]()
    call_later = loop.call_later

    def counted(delay: float, *arguments: Any, **options: Any) -> asyncio.TimerHandle:
        delays.append(delay)
        return call_later(delay, *arguments, **options)

    monkeypatch.setattr(loop, "call_later", counted)
    alarm = Alarm()

    for _ in range(1000):
        await alarm.within(seconds_from_now(LATE), passing("done"))

    assert len(delays) == 1
    alarm.stop()


async def test_stopped_alarm_is_let_go() -> None:
    """After a stop no timer keeps the alarm."""
    alarm = Alarm()
    await alarm.within(seconds_from_now(LATE), passing("done"))
    alarm.stop()
    left = weakref.ref(alarm)

    del alarm
    gc.collect()

    assert left() is None


async def test_stopped_alarm_can_be_used_again() -> None:
    """After a stop deadlines hold as before."""
    alarm = Alarm()
    await alarm.within(seconds_from_now(SOON), passing("done"))
    alarm.stop()

    with pytest.raises(TimeoutError):
        await alarm.within(seconds_from_now(SOON), asyncio.Event().wait())
