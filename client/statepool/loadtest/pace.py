"""When the next operation of a lane is due, and when requests arrive at an engine."""

import asyncio
import random
import time
from collections.abc import Iterator


class Pace:
    """Closed loop: at once. Open loop: at fixed times, whether or not the operation before has ended.

    In the open loop an operation that starts late is measured from when it was due, so that a stall of the server is
    seen by every operation that it held up (no coordinated omission).
    """

    def __init__(self, lane: int, lanes: int, rate: float, until_ns: int) -> None:
        """Begins now.

        Args:
            lane: Number of the lane over all processes; lanes are due one after the other.
            lanes: Lanes over all processes.
            rate: Operations per second over all lanes; 0: closed loop.
            until_ns: When the last operation may begin, by ``time.perf_counter_ns``.
        """
        self._interval_ns = round(lanes / rate * 1e9) if rate else 0
        self._due_ns = time.perf_counter_ns() + (self._interval_ns * lane // lanes)
        self._until_ns = until_ns

    async def turn(self) -> int | None:
        """Waits until the next operation is due.

        Returns:
            When it was due, in nanoseconds of ``time.perf_counter_ns``; None: the time is over.
        """
        due_ns, now_ns = self._due_ns if self._interval_ns else time.perf_counter_ns(), time.perf_counter_ns()
        if max(due_ns, now_ns) >= self._until_ns:
            await asyncio.sleep(max(0, self._until_ns - now_ns) / 1e9)
            return None
        self._due_ns += self._interval_ns
        if due_ns > now_ns:
            await asyncio.sleep((due_ns - now_ns) / 1e9)
        return due_ns

    def overdue(self) -> int:
        """Counts the operations that were due before the time was over, and have not had their turn."""
        if not self._interval_ns or self._due_ns >= self._until_ns:
            return 0
        return (self._until_ns - self._due_ns - 1) // self._interval_ns + 1


class Arrivals:
    """Requests that arrive at random times (a Poisson process), however busy the engine is.

    Attributes:
        next_ns: When the next one arrives, by ``time.perf_counter_ns``.
    """

    def __init__(self, rate: float, seed: str) -> None:
        """Begins now.

        Args:
            rate: Requests per second, on average.
            seed: Seed of the times.
        """
        self._random = random.Random(seed)  # noqa: S311 - traffic, not secrets
        self._rate = rate
        self.next_ns = time.perf_counter_ns() + self._gap_ns()

    def until(self, now_ns: int) -> Iterator[int]:
        """Yields the times of the requests that have arrived since it was asked last."""
        while self.next_ns <= now_ns:
            yield self.next_ns
            self.next_ns += self._gap_ns()

    def _gap_ns(self) -> int:
        return round(self._random.expovariate(self._rate) * 1e9)
