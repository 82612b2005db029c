"""Whether the event loop turns: a beat on the loop, and a thread outside it that notices when there is none."""

import asyncio
import sys
import threading
import time
import traceback
from collections import deque

import structlog

BEAT_SECONDS = 0.25
"""Time between two beats."""

STALL_SECONDS = 1.0
"""Time without a beat after which the loop stands still: ten times what any call may take."""

REMEMBERED_SECONDS = 10.0
"""How far back `Heartbeat.lag` looks."""

_log = structlog.get_logger("statepool.heartbeat")


class Heartbeat:
    """Measures how late the event loop comes to what is due, and says where it stands when it stands still.

    A stall is logged once, with the stack of the loop's thread, while it lasts: afterwards nobody could tell. When a
    thread holds the interpreter itself, no Python can say so; then liveness is not answered, and ``SIGABRT`` shows all
    stacks (see `faulthandler`).
    """

    def __init__(self, beat_seconds: float = BEAT_SECONDS, stall_seconds: float = STALL_SECONDS) -> None:
        self._beat_seconds = beat_seconds
        self._stall_seconds = stall_seconds
        self._beaten_at = time.monotonic()
        self._lags: deque[float] = deque([0.0], maxlen=round(REMEMBERED_SECONDS / beat_seconds))

    @property
    def lag(self) -> float:
        """Longest delay within the last `REMEMBERED_SECONDS`, in seconds."""
        return max(self._lags)

    async def run(self) -> None:
        """Beats, and watches from outside, until cancelled."""
        over = threading.Event()
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._beat())
                both.create_task(asyncio.to_thread(self._watch, over, threading.get_ident()))
        finally:
            over.set()

    async def _beat(self) -> None:
        while True:
            self._beaten_at = time.monotonic()
            await asyncio.sleep(self._beat_seconds)
            lag = time.monotonic() - self._beaten_at - self._beat_seconds
            self._lags.append(lag)
            if lag >= self._stall_seconds:
                _log.warning("event loop stood still", seconds=round(lag, 3))

    def _watch(self, over: threading.Event, loop_thread: int) -> None:
        told_of = looked_at = 0.0
        while not over.wait(self._beat_seconds):
            beaten_at, former, looked_at = self._beaten_at, looked_at or time.monotonic(), time.monotonic()
            if looked_at - former >= self._stall_seconds:  # not the loop: this thread stood still as well
                _log.warning("process stood still", seconds=round(looked_at - former, 3))
            elif looked_at - beaten_at >= self._stall_seconds and told_of != beaten_at:
                told_of = beaten_at
                _log.warning("event loop stands still", stack=_stack_of(loop_thread))


def _stack_of(thread: int) -> str:
    frame = sys._current_frames().get(thread)  # noqa: SLF001 - documented, and the only way to another thread's stack
    return "".join(traceback.format_stack(frame)) if frame is not None else ""
