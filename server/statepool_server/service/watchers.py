"""Open WatchBlocks streams: each is told everything in order, or that it was not; none costs more than its share."""

import asyncio
import time
from typing import NoReturn

from statepool.aio.alarm import Alarm
from statepool.errors import (
    BadFieldError,
    EventCursorCompactedError,
    IncarnationMismatchError,
    QuotaExceededError,
)
from statepool.v1 import pool_pb2 as pb
from statepool_server.service.block_news import BlockNews, encoded
from statepool_server.service.calls import Context
from statepool_server.service.core import Core
from statepool_server.service.stalls import Stalls

PROGRESS_SECONDS = 1.0
"""How long a watcher hears nothing at most."""
WRITE_SECONDS = 0.002
"""Time from one write to the next, of all watchers together: five hundred of them a second take a twentieth of the
event loop, and what waits for its turn meanwhile goes out in one message."""
MESSAGE_BYTES = 256 * 1024
"""Bytes of one message, unless a single batch has more."""


class _Turns:
    """Lets one after the other go, with some time between them."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._next = 0.0

    async def mine(self) -> None:
        """Waits for a turn."""
        now = time.monotonic()
        at = max(now, self._next)
        self._next = at + self._seconds
        if at > now:
            await asyncio.sleep(at - now)


class Watcher:
    """One open stream.

    Attributes:
        sequence: Batch up to which it has been told everything; None: it has been told nothing yet.
        losses: How often it was told that it has lagged too far behind.
    """

    def __init__(self, news: BlockNews, incarnation: int, context: Context, stalls: Stalls, turns: _Turns) -> None:
        self.sequence: int | None = None
        self.losses = 0
        self._news = news
        self._head = pb.WatchBlocksResponse(incarnation=incarnation).SerializeToString()
        self._context = context
        self._stalls = stalls
        self._turns = turns
        self._alarm = Alarm()

    async def run(self, sequence: int | None) -> NoReturn:
        """Tells everything behind a batch, for as long as the stream is open.

        Args:
            sequence: The batch; None: begins with a snapshot.

        Raises:
            StreamStalledError: The watcher takes nothing.
        """
        self.sequence = sequence
        try:
            while True:
                await self._go_on()
        finally:
            self._alarm.stop()

    async def _go_on(self) -> None:
        log = self._news.log
        if self.sequence is None or not log.reaches(self.sequence):
            await self._tell_snapshot()
        elif self.sequence < log.last:
            await self._turns.mine()
            if log.reaches(self.sequence):  # still
                data, self.sequence = log.behind(self.sequence, MESSAGE_BYTES)
                await self._write(data)
        else:
            await self._tell_progress(self.sequence)

    async def _tell_snapshot(self) -> None:
        """Tells what can be found, unless what changes meanwhile is more than is kept: then it was in vain."""
        if self.sequence is not None:
            self.losses += 1
            await self._write(encoded(pb.BlockChanges(kind=pb.BlockChanges.KIND_LOST, sequence=self._news.log.last)))
        snapshot = self._news.snapshot()
        self.sequence = snapshot.sequence
        for index in range(snapshot.part_count):
            await self._turns.mine()
            if not self._news.log.reaches(snapshot.sequence):
                return
            await self._write(snapshot.part(index))

    async def _tell_progress(self, sequence: int) -> None:
        """Waits for changes, and says so when none have come for a while."""
        try:
            async with asyncio.timeout(PROGRESS_SECONDS):
                await self._news.until_told()
        except TimeoutError:
            await self._turns.mine()
            await self._write(encoded(pb.BlockChanges(kind=pb.BlockChanges.KIND_PROGRESS, sequence=sequence)))

    async def _write(self, data: bytes) -> None:
        """Writes a message; cuts off who takes nothing."""
        await self._stalls.moving(self._context.write(self._head + data), "the watcher", self._alarm)


class Watchers:
    """All open streams."""

    def __init__(self, core: Core, news: BlockNews, stalls: Stalls) -> None:
        """Builds the list.

        Args:
            core: What the services share.
            news: What is told.
            stalls: Bounds how long a watcher may stand still.
        """
        self._core = core
        self._news = news
        self._stalls = stalls
        self._turns = _Turns(WRITE_SECONDS)
        self._open: set[Watcher] = set()
        self._past_losses = 0

    def __len__(self) -> int:
        return len(self._open)

    @property
    def news(self) -> BlockNews:
        """What is told."""
        return self._news

    @property
    def lag(self) -> float:
        """Age in seconds of the oldest change that a watcher was not told yet."""
        behind = [watcher.sequence for watcher in self._open if watcher.sequence is not None]
        return self._news.log.age(min(behind)) if behind else 0.0

    @property
    def losses(self) -> int:
        """How often watchers have lagged too far behind."""
        return self._past_losses + sum(watcher.losses for watcher in self._open)

    async def watch(self, request: pb.WatchBlocksRequest, context: Context) -> NoReturn:
        """Serves a stream until it ends.

        Raises:
            IncarnationMismatchError, EventCursorCompactedError, BadFieldError: A cursor that cannot be gone on from.
            QuotaExceededError: As many watch as may.
            StreamStalledError: The watcher takes nothing.
        """
        sequence = self._place(request.cursor) if request.HasField("cursor") else None
        if len(self._open) >= (limit := self._core.limits.max_watchers):
            raise QuotaExceededError(f"{limit} watchers are there already", limit=limit)
        self._news.listen()
        watcher = Watcher(self._news, self._core.incarnation, context, self._stalls, self._turns)
        self._open.add(watcher)
        try:
            await watcher.run(sequence)
        finally:
            self._open.remove(watcher)
            self._past_losses += watcher.losses

    def _place(self, cursor: pb.WatchCursor) -> int:
        """Finds the place of a cursor."""
        if cursor.incarnation != self._core.incarnation:
            raise IncarnationMismatchError(
                f"the cursor is of server process {cursor.incarnation:016x}, this is {self._core.incarnation:016x}",
                field="cursor.incarnation",
            )
        if not self._news.knows(cursor.sequence):
            raise BadFieldError(f"cursor.sequence: {cursor.sequence} is yet to come", field="cursor.sequence")
        if not self._news.log.reaches(cursor.sequence):
            raise EventCursorCompactedError(
                f"not all changes behind {cursor.sequence} are kept any more", field="cursor.sequence"
            )
        return cursor.sequence
