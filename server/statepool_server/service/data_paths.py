"""Ways on which the bytes of a transfer come, behind one interface; that of gRPC always works."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeAlias

from statepool import AsyncClient
from statepool.backoff import Backoff
from statepool.errors import PeerLostError, UnavailableError
from statepool.layout import BlockLayout
from statepool.results import Chunk
from statepool.transfers import DataPath, Transfer
from statepool_server.service.copying import Chore
from statepool_server.service.pinned import PinnedWork

Chunks: TypeAlias = AsyncGenerator[Chunk, None]
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

    def accept(self, tp_rank: int, chunk: Chunk) -> None:
        """Takes a chunk, on a copy thread; chunks of a span come without gaps, each once."""


class Path(Protocol):
    """A way for bytes."""

    @property
    def kind(self) -> DataPath:
        """Its name."""

    async def pull(self, source: AsyncClient, transfer: Transfer, sink: Sink, pinned: PinnedWork) -> int:
        """Pulls everything that a sink wants.

        Args:
            source: The server that lends.
            transfer: What it lends.
            sink: Where it goes.
            pinned: Runs what the sink does, while the blocks are pinned.

        Returns:
            Bytes that have come.

        Raises:
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
        return source.pull_blocks(
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

    async def pull(self, source: AsyncClient, transfer: Transfer, sink: Sink, pinned: PinnedWork) -> int:
        """Pulls everything that a sink wants; see `Path.pull`."""
        places = [_Place(span, sink.layout.image_bytes) for span in sink.spans]
        for place in places:
            await self._pull_span(source, transfer, place, sink, pinned)
        return sum(place.nbytes for place in places)

    async def _pull_span(
        self, source: AsyncClient, transfer: Transfer, place: _Place, sink: Sink, pinned: PinnedWork
    ) -> None:
        backoff, alive_at = Backoff(), time.monotonic()
        while not place.is_end:
            before = place.nbytes
            try:
                stream = place.stream(source, transfer, sink.layout.fingerprint, _LONGEST_SECONDS)
                await self._put_away(stream, place, sink, pinned)
            except (UnavailableError, TimeoutError) as error:
                if place.nbytes > before:
                    backoff, alive_at = Backoff(), time.monotonic()
                if time.monotonic() - alive_at >= self._patience:
                    raise PeerLostError(f"the source gives nothing any more: {error}", field="source") from error
                await asyncio.sleep(backoff.broke())

    async def _put_away(self, stream: Chunks, place: _Place, sink: Sink, pinned: PinnedWork) -> None:
        """Takes chunks until the stream ends; each is put away while the next one comes."""
        putting: asyncio.Future[None] | None = None
        async with aclosing(stream):
            try:
                while (chunk := await self._next(stream)) is not None:
                    if putting is not None:
                        await asyncio.shield(putting)
                    self._check()
                    putting = pinned.begin(
                        partial(sink.accept, place.span.tp_rank, chunk), Chore.WRITE, len(chunk.data)
                    )
                    place.nbytes += len(chunk.data)
            finally:
                if putting is not None:
                    await asyncio.shield(putting)

    async def _next(self, stream: Chunks) -> Chunk | None:
        async with asyncio.timeout(self._patience):
            return await anext(stream, None)
