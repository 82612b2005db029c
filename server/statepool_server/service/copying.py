"""Copy threads: the only code that touches the memory of blocks, off the event loop and bounded in number."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from typing import Any, Generic, TypeVar

import structlog

from statepool.errors import CopiesStalledError, StatepoolError
from statepool_server import failpoints
from statepool_server.histogram import Histogram
from statepool_server.service.flow import Flow
from statepool_server.tracing import NO_TRACING, Tracing

T = TypeVar("T")

STALL_RETRY_SECONDS = 1.0
"""Hint to a caller that found memory work standing still."""

_log = structlog.get_logger("statepool.copying")


class CopiesStuckError(RuntimeError):
    """Memory work does not end, and nothing can end it: its thread can be neither stopped nor joined."""


class Chore(StrEnum):
    """Kinds of memory work."""

    COPY = "copy"
    """Copies between blocks, and zeroing."""
    READ = "read"
    """Chunks of ReadBlocks."""
    WRITE = "write"
    """Chunks of WriteBlocks."""
    CHECKSUM = "checksum"
    """Checksums of blocks."""


class _Work(Generic[T]):
    """Work of a thread, which notes when it begins and ends; the notes are read when it has ended.

    Attributes:
        looks: How often it was seen running.
        submitted: When it was submitted, by `time.perf_counter`.
        began: When a thread began with it.
        ended: When that was done.
    """

    __slots__ = ("_run", "began", "ended", "looks", "submitted")

    def __init__(self, run: Callable[[], T]) -> None:
        self._run = run
        self.looks = 0
        self.submitted = self.began = self.ended = time.perf_counter()

    def __call__(self) -> T:
        self.began = time.perf_counter()
        try:
            failpoints.reach("copy")
            return self._run()
        finally:
            self.ended = time.perf_counter()


class CopyThreads:
    """Runs memory work on a few threads.

    Work of one call is independent of the call: when the caller goes away, the copy still ends, and only then are its
    pins taken back.

    Attributes:
        stalled: Why work stands still, as long as it does (see `StallWatch`).
        seconds: What work took on its thread, by kind.
        queued_seconds: How long work waited for a thread.
        nbytes: Bytes that work has written, read or summed up, by kind.
        failures: Work that failed, by kind.
    """

    def __init__(self, threads: int, limit: int, tracing: Tracing = NO_TRACING) -> None:
        """Starts without work.

        Args:
            threads: Work that runs at a time.
            limit: Work that may be queued or run.
            tracing: Is told of work that has ended.
        """
        self.stalled: str | None = None
        self._tracing = tracing
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="statepool-copy")
        self._limit = limit
        self._flow = Flow("copies")
        self._running: set[asyncio.Future[Any]] = set()
        self._on_threads: set[_Work[Any]] = set()
        self._waiting: set[asyncio.Future[None]] = set()
        self.seconds = {chore: Histogram() for chore in Chore}
        self.queued_seconds = Histogram()
        self.nbytes: Counter[Chore] = Counter()
        self.failures: Counter[Chore] = Counter()

    @property
    def under_way(self) -> int:
        """Pieces of work that are queued or run."""
        return self._flow.under_way

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

    async def room(self, seconds: float) -> None:
        """Waits until there is room for work, for whom it would be dear to begin again.

        Args:
            seconds: How long.

        Raises:
            CopiesStalledError: Work stands still.
            OverloadedError: There was no room in time.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.under_way >= self._limit:
                    await self.wait(asyncio.ensure_future(self.ended()))
        self.check_room()

    def check_moving(self) -> None:
        """Refuses new work, however little is queued.

        Raises:
            CopiesStalledError: Work stands still.
        """
        if self.stalled is not None:
            raise _stalled_error(self.stalled)

    def submit(self, work: Callable[[], T], chore: Chore, nbytes: int) -> "asyncio.Future[T]":
        """Starts work.

        Args:
            work: Blocking; runs on a copy thread.
            chore: What it is.
            nbytes: Bytes that it writes, reads or sums up.

        Returns:
            A future of its result. Wait for it with `wait`: work cannot be cancelled.
        """
        timed = _Work(work)
        future = asyncio.get_running_loop().run_in_executor(self._executor, self._run, timed)
        self._running.add(future)
        self._flow.begin()
        future.add_done_callback(lambda future: self._note(future, timed, chore, nbytes))
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

    def _run(self, work: _Work[T]) -> T:
        self._on_threads.add(work)
        try:
            return work()
        finally:
            self._on_threads.discard(work)

    def _note(self, future: "asyncio.Future[T]", work: _Work[T], chore: Chore, nbytes: int) -> None:
        """Takes note of the end of work."""
        self._running.discard(future)
        self._flow.end()
        self.seconds[chore].observe(work.ended - work.began)
        self.queued_seconds.observe(work.began - work.submitted)
        error = None if future.cancelled() else future.exception()
        self._tracing.worked(chore, work.began, work.ended, nbytes, error)
        if error is None:
            self.nbytes[chore] += nbytes
            return
        self.failures[chore] += 1
        if not isinstance(error, StatepoolError):
            _log.error("copy failed", exc_info=error)


def _stalled_error(reason: str) -> CopiesStalledError:
    return CopiesStalledError(reason, retry_after=STALL_RETRY_SECONDS)
