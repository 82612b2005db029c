"""Ways on which the bytes of a transfer come, behind one interface; that of gRPC always works."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeAlias

from statepool import AsyncClient
from statepool.aio.alarm import Alarm
from statepool.backoff import Backoff
from statepool.byte_chunks import UncheckedChunk
from statepool.errors import PeerLostError, UnavailableError
from statepool.layout import BlockLayout
from statepool.transfers import DataPath, Transfer
from statepool_server.service.copying import Chore
from statepool_server.service.pinned import AT_A_TIME, PinnedWork

Chunks: TypeAlias = AsyncGenerator[UncheckedChunk, None]
"""A stream of chunks that is under way."""

_LONGEST_SECONDS = 3600.0
"""Deadline of a stream: as long as the longest lease; the caller's own ends it much earlier."""


@dataclass(frozen=True, slots=True)
class Span:
    """Images of one rank of the source, one after the other."""

    tp_rank: int
    """The rank."""
    block_index: int
    """The first image."""
    block_count: int
    """How many."""


class Sink(Protocol):
    """Takes the bytes of a transfer in and puts them where they belong."""

    @property
    def layout(self) -> BlockLayout:
        """Layout of the images that it takes: the source's."""

    @property
    def spans(self) -> Sequence[Span]:
        """The images in the order in which it takes them."""

    @property
    def accepted_bytes(self) -> int:
        """Bytes that it has taken."""

    def accept(self, tp_rank: int, chunks: Sequence[UncheckedChunk]) -> None:
        """Checks chunks and takes them, on a copy thread; those of a span come without gaps, each once.

        Raises:
            ChecksumMismatchError: The bytes of one are not those that were sent.
        """


class PathFailedError(Exception):
    """Bytes cannot come this way; another may do.

    Attributes:
        reason: Why, in a word, for metrics.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class _BrokenError(Exception):
    """A stream of the source has ended before its end, by the source's word or its silence."""


class Path(Protocol):
    """A way for bytes."""

    @property
    def kind(self) -> DataPath:
        """Its name."""

    async def pull(self, source: AsyncClient, transfer: Transfer, sink: Any, pinned: PinnedWork) -> int:
        """Pulls everything that a sink wants.

        Args:
            source: The server that lends.
            transfer: What it lends.
            sink: Where it goes: a `Sink`, or what the way itself demands.
            pinned: Runs what the sink does, while the blocks are pinned.

        Returns:
            Bytes that have come.

        Raises:
            PathFailedError: It cannot be done this way.
            PeerLostError: The source gives nothing any more.
            StatepoolError: What else the source has against it.
        """


class _Place:
    """How far a span has come."""

    def __init__(self, span: Span, image_bytes: int) -> None:
        self.span = span
        self.nbytes = 0
        self._image_bytes = image_bytes

    @property
    def is_end(self) -> bool:
        """Whether everything has come."""
        return self.nbytes == self.span.block_count * self._image_bytes

    def stream(self, source: AsyncClient, transfer: Transfer, fingerprint: str, seconds: float) -> Chunks:
        """Opens a stream of what is left."""
        passed, offset = divmod(self.nbytes, self._image_bytes)
        return source.pull_unchecked(
            transfer,
            tp_rank=self.span.tp_rank,
            block_index=self.span.block_index + passed,
            offset=offset,
            block_count=self.span.block_count - passed,
            layout_fingerprint=fingerprint,
            timeout=seconds,
        )


class GrpcPath:
    """Byte streams of gRPC; one that breaks is followed by another, which goes on where it was."""

    kind = DataPath.GRPC

    def __init__(self, check: Callable[[], None], patience: float) -> None:
        """Makes a path for one transfer.

        Args:
            check: Raises when the bytes are no longer wanted.
            patience: Seconds without a byte after which the source is given up.
        """
        self._check = check
        self._patience = patience
        self._alarm = Alarm()

    async def pull(self, source: AsyncClient, transfer: Transfer, sink: Sink, pinned: PinnedWork) -> int:
        """Pulls everything that a sink wants; see `Path.pull`."""
        places = [_Place(span, sink.layout.image_bytes) for span in sink.spans]
        try:
            for place in places:
                await self._pull_span(source, transfer, place, sink, pinned)
        finally:
            self._alarm.stop()
        wanted = sum(span.block_count for span in sink.spans) * sink.layout.image_bytes
        if sink.accepted_bytes != wanted:
            raise RuntimeError(f"{sink.accepted_bytes} bytes were put away, not {wanted}")
        return wanted

    async def _pull_span(
        self, source: AsyncClient, transfer: Transfer, place: _Place, sink: Sink, pinned: PinnedWork
    ) -> None:
        backoff, alive_at = Backoff(), time.monotonic()
        while not place.is_end:
            before = place.nbytes
            try:
                stream = place.stream(source, transfer, sink.layout.fingerprint, _LONGEST_SECONDS)
                await self._put_away(stream, place, sink, pinned)
            except _BrokenError as error:
                if place.nbytes > before:
                    backoff.worked()
                    alive_at = time.monotonic()
                if time.monotonic() - alive_at >= self._patience:
                    raise PeerLostError(f"the source gives nothing any more: {error}", field="source") from error
                await asyncio.sleep(backoff.broke())

    async def _put_away(self, stream: Chunks, place: _Place, sink: Sink, pinned: PinnedWork) -> None:
        """Takes chunks until the stream ends; those that have come are put away while more come."""
        putting: asyncio.Future[None] | None = None
        come: list[UncheckedChunk] = []
        async with aclosing(stream):
            try:
                while (chunk := await self._next(stream)) is not None:
                    come.append(chunk)
                    if putting is None or putting.done() or len(come) == AT_A_TIME:
                        await _end(putting, pinned)
                        putting, come = await self._put(come, place, sink, pinned), []
            finally:
                await _end(putting, pinned)
        if come:
            await _end(await self._put(come, place, sink, pinned), pinned)

    async def _put(
        self, chunks: list[UncheckedChunk], place: _Place, sink: Sink, pinned: PinnedWork
    ) -> "asyncio.Future[None]":
        """Has a thread put chunks away; what is refused here is no fault of the source, and ends the transfer."""
        await pinned.room(self._patience)
        self._check()
        nbytes = sum(len(chunk.data) for chunk in chunks)
        putting = pinned.begin(partial(sink.accept, place.span.tp_rank, chunks), Chore.WRITE, nbytes)
        place.nbytes += nbytes
        return putting

    async def _next(self, stream: Chunks) -> UncheckedChunk | None:
        try:
            return await self._alarm.within(time.monotonic() + self._patience, anext(stream, None))
        except (UnavailableError, TimeoutError) as error:
            raise _BrokenError(str(error)) from error


async def _end(putting: "asyncio.Future[None] | None", pinned: PinnedWork) -> None:
    if putting is not None:
        await pinned.wait(putting)
