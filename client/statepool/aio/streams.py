"""Byte streams of a session, for asyncio."""

# ruff: noqa: ASYNC109 — a deadline is sent to the server with each call, which asyncio.timeout cannot do

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING

from statepool import calls
from statepool.aio.endpoint import AsyncEndpoint
from statepool.aio.transport import AsyncTransport
from statepool.handle import SessionHandle
from statepool.lease import Lease

if TYPE_CHECKING:
    from statepool.calls.images import ImageReader, Images
    from statepool.refs import BlockRefs
    from statepool.results import Chunk


class AsyncBlockStreams(SessionHandle, AsyncEndpoint):
    """The part of a session that reads and writes block images."""

    def __init__(self, transport: AsyncTransport, lease: Lease) -> None:
        SessionHandle.__init__(self, lease)
        AsyncEndpoint.__init__(self, transport)

    async def read_blocks(
        self,
        blocks: BlockRefs,
        *,
        offset: int = 0,
        length: int | None = None,
        rank_index: int = 0,
        timeout: float | None = None,
    ) -> AsyncGenerator[Chunk, None]:
        """Streams block images in chunks, each checked; the blocks are pinned until the iterator ends or is closed.

        See `Session.read_blocks`.
        """
        deadline = self._transport.deadline(timeout)
        reader = await self._reader(blocks, offset, length, rank_index, deadline)
        async with aclosing(self._transport.read(reader, deadline, self._lease)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def read_images(
        self,
        blocks: BlockRefs,
        *,
        offset: int = 0,
        length: int | None = None,
        rank_index: int = 0,
        timeout: float | None = None,
    ) -> Images:
        """Reads block images into one array; arguments and errors as `read_blocks`; see `Session.read_images`."""
        deadline = self._transport.deadline(timeout)
        reader = await self._reader(blocks, offset, length, rank_index, deadline)
        images = reader.new_images()
        async for chunk in self._transport.read(reader, deadline, self._lease):
            reader.place(chunk, images)
        return images

    async def write_blocks(
        self,
        blocks: BlockRefs,
        data: bytes | bytearray | memoryview | Images,
        *,
        offset: int = 0,
        rank_index: int = 0,
        layout_fingerprint: str = "",
        timeout: float | None = None,
    ) -> int:
        """Writes bytes of block images, in checked chunks; see `Session.write_blocks`."""
        deadline = self._transport.deadline(timeout)
        images = calls.images.as_images(data, len(blocks))
        max_chunk_bytes = (await self._transport.pool(deadline)).limits.max_chunk_bytes
        messages = partial(
            calls.images.write_messages,
            self._ref,
            blocks,
            images,
            offset=offset,
            rank_index=rank_index,
            layout_fingerprint=layout_fingerprint,
            max_chunk_bytes=max_chunk_bytes,
        )
        return await self._transport.write(messages, deadline, calls.images.stream_seconds(images.nbytes), self._lease)

    async def _reader(
        self, blocks: BlockRefs, offset: int, length: int | None, rank_index: int, deadline: float
    ) -> ImageReader:
        image_bytes = (await self._transport.pool(deadline)).layout.block.image_bytes
        return calls.images.ImageReader(
            self._ref, blocks, offset=offset, length=length, rank_index=rank_index, image_bytes=image_bytes
        )
