"""Deadlines of operations that follow one another."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


class Alarm:
    """Gives up operations that have not ended by their deadlines, as `asyncio.timeout` does; one at a time.

    Nearly all operations end long before. `asyncio.timeout` makes a timer for each and takes it back, which costs a
    scheduler a tenth of an engine step; here one timer stays as it is while deadlines move away from it, and is set
    anew when it runs out too early.
    """

    def __init__(self) -> None:
        self._cancel: Callable[[], object] | None = None
        self._deadline = math.inf
        self._due = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._has_rung = False

    async def within(self, deadline: float, operation: Awaitable[T]) -> T:
        """Awaits an operation.

        Args:
            deadline: When to give it up, by `time.monotonic`.
            operation: The operation; cancelled when the deadline passes.

        Raises:
            TimeoutError: The deadline passed.
            asyncio.CancelledError: The operation, or the task that awaits it, was cancelled by somebody else.
        """
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in one
        cancellations = task.cancelling()
        self._set(deadline, task.cancel)
        try:
            return await operation
        except asyncio.CancelledError:
            if self._has_rung and task.cancelling() <= cancellations + 1:
                raise TimeoutError from None
            raise
        finally:
            self._deadline, self._cancel = math.inf, None
            if self._has_rung:
                task.uncancel()

    def stop(self) -> None:
        """Takes the timer back, which else runs on until the deadline that set it."""
        self._due = math.inf
        if self._timer is not None:
            self._timer.cancel()

    def _set(self, deadline: float, cancel: Callable[[], object]) -> None:
        self._deadline, self._cancel, self._has_rung = deadline, cancel, False
        if deadline < self._due:
            self._start()

    def _start(self) -> None:
        self.stop()
        self._due = self._deadline
        self._timer = asyncio.get_running_loop().call_later(self._due - time.monotonic(), self._ran_out)

    def _ran_out(self) -> None:
        self._due = math.inf
        if self._cancel is None:
            return
        if time.monotonic() >= self._deadline:
            self._has_rung = True
            self._cancel()
        else:
            self._start()
