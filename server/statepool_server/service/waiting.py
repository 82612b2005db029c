"""Allocations that wait for blocks: a bounded queue, first come first served."""

import asyncio
import contextlib
import contextvars
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from statepool.errors import OverloadedError, PoolExhaustedError, StatepoolError
from statepool_server.histogram import Histogram

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter(Generic[T]):
    attempt: Callable[[], T]
    check: Callable[[], None]
    answer: "asyncio.Future[T]"


class WaitingLine(Generic[T]):
    """Callers in the order in which they came; nobody is served before the head of the line.

    An *attempt* is a plain function that takes effect whole or raises; it is run in the caller's own step where nobody
    waits, else in the step that freed blocks (`serve`), so that blocks cannot slip to somebody else in between.

    Attributes:
        seconds: How long those waited who had to, with or without success.
    """

    def __init__(self, limit: int, hint: Callable[[int], float]) -> None:
        """Makes a line.

        Args:
            limit: Callers that may wait.
            hint: Tells in how many seconds so many of them may have been served.
        """
        self.seconds = Histogram()
        self._limit = limit
        self._hint = hint
        self._line: deque[_Waiter[T]] = deque()
        self._is_serving = False

    def __len__(self) -> int:
        return sum(not waiter.answer.done() for waiter in self._line)

    async def run(self, attempt: Callable[[], T], check: Callable[[], None], max_wait: float) -> T:
        """Runs an attempt, at the latest when ``max_wait`` seconds have passed.

        Args:
            attempt: Raises `PoolExhaustedError` as long as it has to wait.
            check: Raises when the caller has lost its right to wait; asked by `recheck`.
            max_wait: Seconds; 0: now or never.

        Returns:
            What the attempt returned.

        Raises:
            PoolExhaustedError: No success in time, or others were waiting and the caller would not.
            OverloadedError: The line is as long as it may be.
            DrainingError: The server stopped meanwhile.
            StatepoolError: Whatever else the attempt raised.
        """
        self._drop_gone()
        if not self._line:
            try:
                return attempt()
            except PoolExhaustedError:
                if max_wait <= 0:
                    raise
        elif max_wait <= 0:
            raise self._exhausted(f"{len(self)} calls wait for blocks already")
        return await self._wait(attempt, check, max_wait)

    async def _wait(self, attempt: Callable[[], T], check: Callable[[], None], max_wait: float) -> T:
        if len(self) >= self._limit:
            raise OverloadedError(f"{self._limit} calls wait for blocks already", retry_after=self._hint(self._limit))
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        # Whoever frees the blocks runs the attempt: what it begins belongs to the caller's trace all the same.
        waiter = _Waiter(partial(contextvars.copy_context().run, attempt), check, answer)
        self._line.append(waiter)
        began = time.monotonic()
        try:
            async with asyncio.timeout(max_wait):
                return await answer
        except TimeoutError:
            if answer.done() and not answer.cancelled():  # served in the very step of the timeout
                return answer.result()
            raise self._exhausted(f"no blocks within {max_wait:g} s") from None
        finally:
            self.seconds.observe(time.monotonic() - began)
            with contextlib.suppress(ValueError):  # at the head it was taken out when it was served
                self._line.remove(waiter)
            self.serve()

    def serve(self) -> None:
        """Serves from the head of the line as far as the blocks reach; called after anything that frees blocks."""
        if not self._line or self._is_serving:  # an attempt may free blocks too, and is called for that itself
            return
        self._is_serving = True
        try:
            self._drop_gone()
            while self._line and self._is_served(self._line[0]):
                self._drop_gone()
        finally:
            self._is_serving = False

    def recheck(self) -> None:
        """Refuses those who have lost their right to wait, wherever they stand; called when sessions end or change."""
        for waiter in self._line:
            if not waiter.answer.done():
                try:
                    waiter.check()
                except StatepoolError as error:
                    waiter.answer.set_exception(error)
        self.serve()

    def close(self, error: StatepoolError) -> None:
        """Refuses everybody who waits."""
        for waiter in self._line:
            if not waiter.answer.done():
                waiter.answer.set_exception(error)
        self._line.clear()

    def _is_served(self, waiter: _Waiter[T]) -> bool:
        try:
            waiter.answer.set_result(waiter.attempt())
        except PoolExhaustedError:
            return False
        except StatepoolError as error:
            waiter.answer.set_exception(error)
        return True

    def _exhausted(self, message: str) -> PoolExhaustedError:
        return PoolExhaustedError(message, field="count", retry_after=self._hint(len(self) + 1))

    def _drop_gone(self) -> None:
        while self._line and self._line[0].answer.done():
            self._line.popleft()
