"""A deadline for operations that follow one another."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable


class Alarm:
    """Rings when an operation has not ended by its deadline; one operation at a time.

    Nearly all of them end long before. `asyncio.timeout` makes a timer for each and takes it back, which costs a
    scheduler a tenth of an engine step; here one timer stays as it is while deadlines move away from it, and is set
    anew when it runs out too early.

    Attributes:
        has_rung: Whether the deadline that was set last has passed.
    """

    def __init__(self, ring: Callable[[], object]) -> None:
        """Builds an alarm without a deadline.

        Args:
            ring: Called on the event loop when a deadline passes; has to end the operation.
        """
        self._ring = ring
        self._deadline = math.inf
        self._due = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self.has_rung = False

    def set(self, deadline: float) -> None:
        """Begins an operation that is to end by a deadline, by `time.monotonic`."""
        self._deadline, self.has_rung = deadline, False
        if deadline < self._due:
            self._start()

    def clear(self) -> None:
        """Notes that the operation has ended."""
        self._deadline = math.inf

    def stop(self) -> None:
        """Takes the timer back, which would keep the alarm's owner alive."""
        self.clear()
        self._due = math.inf
        if self._timer is not None:
            self._timer.cancel()

    def _start(self) -> None:
        deadline = self._deadline
        self.stop()
        self._deadline = self._due = deadline
        self._timer = asyncio.get_running_loop().call_later(deadline - time.monotonic(), self._ran_out)

    def _ran_out(self) -> None:
        self._due = math.inf
        if time.monotonic() >= self._deadline:
            self.has_rung = True
            self._ring()
        elif self._deadline < math.inf:
            self._start()
