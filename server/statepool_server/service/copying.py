"""Copy threads: the only code that touches the memory of blocks, off the event loop and bounded in number."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog

from statepool.errors import CopiesStalledError, StatepoolError
from statepool_server import failpoints
from statepool_server.service.flow import Flow

T = TypeVar("T")

STALL_RETRY_SECONDS = 1.0
"""Hint to a caller that found memory work standing still."""

_log = structlog.get_logger("statepool.copying")


class CopiesStuckError(RuntimeError):
    """Memory work does not end, and nothing can end it: its thread can be neither stopped nor joined."""


@dataclass(slots=True, eq=False)
class _Work:
    """Work that a thread does now."""

    looks: int = 0
    """How often it was seen running."""


class CopyThreads:
    """Runs memory work on a few threads.

    Work of one call is independent of the call: when the caller goes away, the copy still ends, and only then are its
    pins taken back.

    Attributes:
        stalled: Why work stands still, as long as it does (see `StallWatch`).
    """

    def __init__(self, threads: int, limit: int) -> None:
        self.stalled: str | None = None
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="statepool-copy")
        self._limit = limit
        self._flow = Flow("copies")
        self._running: set[asyncio.Future[Any]] = set()
        self._on_threads: set[_Work] = set()
        self._waiting: set[asyncio.Future[None]] = set()

    def check_room(self, seconds: float | None = None) -> None:
        """Refuses new work before anything was changed for it.

        Args:
            seconds: How long the caller can wait for it; None: as long as it takes.

        Raises:
            CopiesStalledError: Work stands still.
            OverloadedError: As much work is queued as may be, or more than is done in time: work that nobody waits for
                any more would only hold up the work of others.
        """
        self.check_moving()
        self._flow.check(self._limit, seconds)

    def check_moving(self) -> None:
        """Refuses new work, however little is queued.

        Raises:
            CopiesStalledError: Work stands still.
        """
        if self.stalled is not None:
            raise _stalled_error(self.stalled)

    def submit(self, work: Callable[[], T], release: Callable[[], None] | None = None) -> "asyncio.Future[T]":
        """Starts work.

        Args:
            work: Blocking; runs on a copy thread.
            release: Runs on the event loop when the work has ended, whether or not it failed and anybody still waits.

        Returns:
            A future of its result. Wait for it with `wait`: work cannot be cancelled.
        """
        future = asyncio.get_running_loop().run_in_executor(self._executor, self._run, work)
        self._running.add(future)
        self._flow.begin()

        def ended(future: "asyncio.Future[T]") -> None:
            self._running.discard(future)
            self._flow.end()
            error = None if future.cancelled() else future.exception()
            if error is not None and not isinstance(error, StatepoolError):
                _log.error("copy failed", exc_info=error)
            if release is not None:
                release()

        future.add_done_callback(ended)
        return future

    async def wait(self, end: "asyncio.Future[T]") -> T:
        """Waits for the end of work, as long as work moves; the work goes on whatever becomes of the caller.

        Args:
            end: What `submit` returned, or a future that is done some time after.

        Returns:
            Its result.

        Raises:
            CopiesStalledError: Work stands still.
        """
        if not end.done():
            self.check_moving()
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.add(waiter)

            def wake(_end: "asyncio.Future[T]") -> None:
                if not waiter.done():
                    waiter.set_result(None)

            end.add_done_callback(wake)
            try:
                await waiter
            finally:
                end.remove_done_callback(wake)
                self._waiting.discard(waiter)
        return end.result()

    def look(self) -> None:
        """Takes note of what runs now."""
        for work in list(self._on_threads):
            work.looks += 1

    def seen(self, looks: int) -> int:
        """Counts what runs and was seen so many times or more."""
        return sum(work.looks >= looks for work in list(self._on_threads))

    def stall(self, reason: str) -> None:
        """Refuses new work, and everybody who waits, until `resume`; what was queued is still done if it can be."""
        self.stalled = reason
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(_stalled_error(reason))

    def resume(self) -> None:
        """Takes new work again."""
        self.stalled = None

    async def ended(self) -> None:
        """Waits until some work, if there is any, has ended."""
        if self._running:
            await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)

    async def close(self, timeout: float) -> None:  # noqa: ASYNC109 — what it waits for cannot be cancelled
        """Waits for all work and ends the threads.

        Args:
            timeout: Seconds to wait.

        Raises:
            CopiesStuckError: Work has not ended in time.
        """
        try:
            async with asyncio.timeout(timeout):
                while self._running:
                    await self.ended()
        except TimeoutError:
            raise CopiesStuckError(f"{len(self._running)} copies have not ended within {timeout:g} s") from None
        self._executor.shutdown()

    def _run(self, work: Callable[[], T]) -> T:
        running = _Work()
        self._on_threads.add(running)
        try:
            failpoints.reach("copy")
            return work()
        finally:
            self._on_threads.discard(running)


def _stalled_error(reason: str) -> CopiesStalledError:
    return CopiesStalledError(reason, retry_after=STALL_RETRY_SECONDS)
