"""Open Schedule streams: what they are told unasked, and how they end."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from statepool.errors import StatepoolError, StreamReplacedError
from statepool.v1 import sequence_pb2 as pb
from statepool_server.service.calls import Context, draining_error
from statepool_server.service.core import Core

RELIEF = 2
"""Blocks are plenty again when so many times the threshold are free or evictable, so that notices do not flutter."""


class ScheduleStream:
    """One open stream."""

    def __init__(self, core: Core, session: tuple[int, int], context: Context) -> None:
        self._core = core
        self._context = context
        self._writing = asyncio.Lock()
        self._news: asyncio.Queue[pb.Notice.Kind.ValueType] = asyncio.Queue()
        self._handler = asyncio.current_task()
        self.session = session
        self.error: StatepoolError | None = None

    async def send(self, message: pb.ScheduleResponse) -> None:
        """Writes a message; answers and notices take turns."""
        async with self._writing:
            await self._context.write(message)

    def tell(self, kind: "pb.Notice.Kind.ValueType") -> None:
        """Has a notice written."""
        self._news.put_nowait(kind)

    async def write_notices(self) -> None:
        """Writes notices as they come."""
        while True:
            notice = pb.Notice(kind=await self._news.get(), usage=self._core.usage())
            await self.send(pb.ScheduleResponse(incarnation=self._core.incarnation, notice=notice))

    def end(self, error: StatepoolError) -> None:
        """Ends the stream with a status, also while it waits for its client."""
        if self.error is None and self._handler is not None:
            self.error = error
            self._handler.cancel()


class ScheduleStreams:
    """All open streams, at most one of a session."""

    def __init__(self, core: Core, pressure: float) -> None:
        """Builds the list.

        Args:
            core: What the services share.
            pressure: Share of the blocks below which free and evictable ones are scarce.
        """
        self._core = core
        self._scarce = round(pressure * core.pool.capacity)
        self._is_scarce = False
        self._open: dict[int, ScheduleStream] = {}  # by session id
        self._draining = False
        self._progress = asyncio.Event()

    @contextlib.asynccontextmanager
    async def opened(self, session: tuple[int, int], context: Context) -> AsyncIterator[ScheduleStream]:
        """Keeps a stream in the list while it is open; the caller is its handler.

        The session's former stream ends here. Its handler runs no further than the call that it awaits, so it applies
        nothing more: neither the steps that it has received and not begun, nor any that are still on their way.

        Raises:
            StatepoolError: What the stream was ended with.
        """
        stream = ScheduleStream(self._core, session, context)
        former = self._open.get(session[0])
        if former is not None:
            former.end(StreamReplacedError("the session has opened another stream", field="open"))
        self._open[session[0]] = stream
        self._tell_news(stream)
        notices = asyncio.create_task(stream.write_notices())
        try:
            yield stream
        except asyncio.CancelledError:
            if stream.error is None:
                raise
            raise stream.error from None
        finally:
            if self._open.get(session[0]) is stream:
                del self._open[session[0]]
            self._progress.set()
            notices.cancel()

    def blocks_changed(self) -> None:
        """Tells all streams when blocks have become scarce, or plenty again."""
        if self._draining:
            self._progress.set()
        blocks = self._core.pool.blocks
        room = blocks.free_count + len(blocks.evictable)
        if room < self._scarce if not self._is_scarce else room >= RELIEF * self._scarce:
            self._is_scarce = not self._is_scarce
            for stream in self._open.values():
                stream.tell(pb.Notice.KIND_PRESSURE if self._is_scarce else pb.Notice.KIND_RELIEF)

    def sessions_changed(self, _ended: Sequence[int]) -> None:
        """Ends the streams whose sessions are lost."""
        for stream in list(self._open.values()):
            try:
                self._core.pool.check_session(*stream.session)
            except StatepoolError as error:
                stream.end(error)

    async def drain(self, timeout: float) -> None:  # noqa: ASYNC109 - part of a longer shutdown
        """Tells every stream that the server is going to stop, lets it finish its sequences, and ends it.

        Args:
            timeout: Seconds after which streams are ended whatever they still have.
        """
        self._draining = True
        for stream in self._open.values():
            stream.tell(pb.Notice.KIND_GOING_AWAY)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while any(map(self._core.pool.sequences.count_of, self._open)):
                    self._progress.clear()
                    await self._progress.wait()
        for stream in list(self._open.values()):
            stream.end(draining_error())

    def _tell_news(self, stream: ScheduleStream) -> None:
        if self._is_scarce:
            stream.tell(pb.Notice.KIND_PRESSURE)
        if self._draining:
            stream.tell(pb.Notice.KIND_GOING_AWAY)
