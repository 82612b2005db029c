"""Copy threads: the only code that touches the memory of blocks, off the event loop and bounded in number."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import structlog

from statepool.errors import StatepoolError
from statepool_server.service.flow import Flow

T = TypeVar("T")

_log = structlog.get_logger("statepool.copying")


class CopyThreads:
    """Runs memory work on a few threads.

    Work of one call is independent of the call: when the caller goes away, the copy still ends, and only then are its
    pins taken back.
    """

    def __init__(self, threads: int, limit: int) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="statepool-copy")
        self._limit = limit
        self._flow = Flow("copies")
        self._running: set[asyncio.Future[Any]] = set()

    def check_room(self, seconds: float | None = None) -> None:
        """Refuses new work before anything was changed for it.

        Args:
            seconds: How long the caller can wait for it; None: as long as it takes.

        Raises:
            OverloadedError: As much work is queued as may be, or more than is done in time: work that nobody waits for
                any more would only hold up the work of others.
        """
        self._flow.check(self._limit, seconds)

    def submit(self, work: Callable[[], T], release: Callable[[], None] | None = None) -> "asyncio.Future[T]":
        """Starts work.

        Args:
            work: Blocking; runs on a copy thread.
            release: Runs on the event loop when the work has ended, whether or not it failed and anybody still waits.

        Returns:
            A future of its result. Await it through `asyncio.shield`: work cannot be cancelled.
        """
        future = asyncio.get_running_loop().run_in_executor(self._executor, work)
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

    async def close(self) -> None:
        """Waits for all work and ends the threads."""
        while self._running:
            await asyncio.wait(self._running)
        self._executor.shutdown()
