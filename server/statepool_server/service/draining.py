"""The way down, one for SIGTERM and `Drain`: nothing begins any more, what has begun may finish, then the end."""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable

import structlog

from statepool.errors import DrainingError
from statepool_server.service.core import Core
from statepool_server.service.health import Health

DRAIN_RETRY_SECONDS = 1.0
"""Hint to callers of a draining server: a restart takes about as long."""

LAST_WORDS_SECONDS = 1.0
"""What calls that are under way have to end when the grace time is over."""

_log = structlog.get_logger("statepool.server")


def draining_error() -> DrainingError:
    """Tells a caller that the server takes nothing new."""
    return DrainingError("the server is draining", retry_after=DRAIN_RETRY_SECONDS)


class Drain:
    """Takes a server out of service, once; whoever asks again joins in.

    Attributes:
        begun: Set when nothing may begin any more.
        drained: Set when no sequence is left, or the time is over in which a server that is to stop waits for them.
        stop: Set when the process is to end.
        on_begin: Called when draining begins.
    """

    def __init__(self, core: Core, health: Health, stop: asyncio.Event) -> None:
        """Begins nothing.

        Args:
            core: What the services share.
            health: Told that the server is not ready.
            stop: Set by signals too, and by `begin` when all is done.
        """
        self.begun, self.drained = asyncio.Event(), asyncio.Event()
        self.stop = stop
        self.on_begin: list[Callable[[], None]] = []
        self._core = core
        self._health = health
        self._stop_at = math.inf
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def seconds_left(self) -> float:
        """Grace time that is left to calls which are under way."""
        return max(LAST_WORDS_SECONDS, self._stop_at - time.monotonic())

    def begin(self, stop_within: float | None = None) -> None:
        """Begins to drain, or joins in.

        Args:
            stop_within: Seconds after which the server stops waiting for sequences and ends, earlier if there are none;
                the shortest that anybody has asked for holds. None: it stays up.
        """
        if stop_within is not None:
            self._stop_at = min(self._stop_at, time.monotonic() + stop_within)
            self._changed.set()
        if self._task is None:
            self.begun.set()
            self._task = asyncio.create_task(self._run(), name="statepool-drain")

    async def wait(self, seconds: float) -> None:
        """Waits until the server is drained, but no longer than some seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.drained.wait()

    def progressed(self) -> None:
        """Notes that sequences may have ended."""
        if self._task is not None:
            self._changed.set()

    async def _run(self) -> None:
        _log.info("draining", sequences=self._sequences)
        self._core.waiting.close(draining_error())
        for begin in self.on_begin:
            begin()
        await self._health.not_ready()
        await self._until(lambda: not self._sequences)
        _log.info("drained", sequences=self._sequences)
        self.drained.set()
        await self._until(lambda: self._stop_at < math.inf)
        self.stop.set()

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Waits for a condition, but not longer than the server is to last."""
        while not condition() and (seconds := self._stop_at - time.monotonic()) > 0:
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if math.isinf(seconds) else seconds):
                    await self._changed.wait()

    @property
    def _sequences(self) -> int:
        return self._core.pool.usage().sequences
