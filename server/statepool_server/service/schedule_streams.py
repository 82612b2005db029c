"""Open Schedule streams: what they are told unasked, and how they end."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator

from statepool.aio.alarm import Alarm
from statepool.errors import StatepoolError, StreamReplacedError
from statepool.v1 import sequence_pb2 as pb
from statepool_server.service.calls import Context
from statepool_server.service.core import Core
from statepool_server.service.endable import Endable
from statepool_server.service.stalls import Stalls

RELIEF = 2
"""Blocks are plenty again when so many times the threshold are free or evictable, so that notices do not flutter."""

_TAKEN_BACK = {
    pb.Notice.KIND_PRESSURE: pb.Notice.KIND_RELIEF,
    pb.Notice.KIND_RELIEF: pb.Notice.KIND_PRESSURE,
    pb.Notice.KIND_GOING_AWAY: pb.Notice.KIND_GOING_AWAY,
}
"""What each notice says is true no longer; so a client that reads slowly has two notices before it at most."""


class ScheduleStream(Endable):
    """One open stream."""

    def __init__(self, core: Core, session: tuple[int, int], context: Context, stalls: Stalls) -> None:
        super().__init__()
        self._core = core
        self._context = context
        self._stalls = stalls
        self._writing = asyncio.Lock()
        self._alarm = Alarm()
        self._news: deque[pb.Notice.Kind.ValueType] = deque()
        self._is_told = asyncio.Event()
        self.session = session

    async def send(self, message: pb.ScheduleResponse | bytes) -> None:
        """Writes a message, or the bytes of one; answers and notices take turns.

        Raises:
            StreamStalledError: The client takes nothing.
        """
        async with self._writing:
            await self._stalls.moving(self._context.write(message), "the reader", self._alarm)

    def tell(self, kind: "pb.Notice.Kind.ValueType") -> None:
        """Has a notice written; one that takes back what was not written yet takes its place."""
        with contextlib.suppress(ValueError):
            self._news.remove(_TAKEN_BACK[kind])
        self._news.append(kind)
        self._is_told.set()

    async def write_notices(self) -> None:
        """Writes notices as they come."""
        while True:
            await self._is_told.wait()
            self._is_told.clear()
            while self._news:
                notice = pb.Notice(kind=self._news.popleft(), usage=self._core.usage())
                await self.send(pb.ScheduleResponse(incarnation=self._core.incarnation, notice=notice))

    def notices_ended(self, notices: "asyncio.Task[None]") -> None:
        """Ends the stream when a notice could not be written."""
        error = None if notices.cancelled() else notices.exception()
        if isinstance(error, StatepoolError):
            self.end(error)

    def closed(self) -> None:
        """Gives the stream's timer back."""
        self._alarm.stop()


class ScheduleStreams:
    """All open streams, at most one of a session."""

    def __init__(self, core: Core, pressure: float, stalls: Stalls) -> None:
        """Builds the list.

        Args:
            core: What the services share.
            pressure: Share of the blocks below which free and evictable ones are scarce.
            stalls: Bounds how long a client may stand still.
        """
        self._core = core
        self._stalls = stalls
        self._scarce = round(pressure * core.pool.capacity)
        self._is_scarce = False
        self._open: dict[int, ScheduleStream] = {}  # by session id
        self._draining = False

    @contextlib.asynccontextmanager
    async def opened(self, session: tuple[int, int], context: Context) -> AsyncIterator[ScheduleStream]:
        """Keeps a stream in the list while it is open; the caller is its handler.

        The session's former stream ends here. Its handler runs no further than the call that it awaits, so it applies
        nothing more: neither the steps that it has received and not begun, nor any that are still on their way.

        Raises:
            StatepoolError: What the stream was ended with.
        """
        stream = ScheduleStream(self._core, session, context, self._stalls)
        former = self._open.get(session[0])
        if former is not None:
            former.end(StreamReplacedError("the session has opened another stream", field="open"))
        self._open[session[0]] = stream
        self._tell_news(stream)
        notices = asyncio.create_task(stream.write_notices())
        notices.add_done_callback(stream.notices_ended)
        try:
            with stream:
                yield stream
        finally:
            if self._open.get(session[0]) is stream:
                del self._open[session[0]]
            notices.cancel()
            stream.closed()

    def blocks_changed(self) -> None:
        """Tells all streams when blocks have become scarce, or plenty again."""
        blocks = self._core.pool.blocks
        room = blocks.free_count + len(blocks.evictable)
        if room < self._scarce if not self._is_scarce else room >= RELIEF * self._scarce:
            self._is_scarce = not self._is_scarce
            for stream in self._open.values():
                stream.tell(pb.Notice.KIND_PRESSURE if self._is_scarce else pb.Notice.KIND_RELIEF)

    def sessions_changed(self) -> None:
        """Ends the streams whose sessions are lost."""
        for stream in list(self._open.values()):
            try:
                self._core.pool.check_session(*stream.session)
            except StatepoolError as error:
                stream.end(error)

    def going_away(self) -> None:
        """Tells every stream, and every one that opens from now on, that the server is going to stop."""
        self._draining = True
        for stream in self._open.values():
            stream.tell(pb.Notice.KIND_GOING_AWAY)

    def _tell_news(self, stream: ScheduleStream) -> None:
        if self._is_scarce:
            stream.tell(pb.Notice.KIND_PRESSURE)
        if self._draining:
            stream.tell(pb.Notice.KIND_GOING_AWAY)
