"""Byte streams of block images: ReadBlocks and WriteBlocks."""

import contextlib
from collections.abc import AsyncIterator
from functools import partial

import xxhash

from statepool.byte_chunks import encode_chunk
from statepool.errors import (
    BadFieldError,
    BatchTooLargeError,
    BlockIndexOutOfRangeError,
    ChecksumMismatchError,
    LayoutMismatchError,
)
from statepool.refs import BlockRefs
from statepool.v1 import block_pb2 as pb
from statepool_server.service.calls import Context
from statepool_server.service.copying import Chore
from statepool_server.service.core import Core
from statepool_server.service.ledger import Kind, MessageCodec
from statepool_server.service.pinned import PinnedWork
from statepool_server.service.stalls import Stalls
from statepool_server.work import MemoryWork


class BlockStreams:
    """Handlers that stream bytes; a stream pins its blocks, and lasts no longer than its peer moves."""

    def __init__(self, core: Core, stalls: Stalls) -> None:
        """Builds the handlers.

        Args:
            core: What the services share.
            stalls: Bounds how long a peer may stand still.
        """
        self._core = core
        self._stalls = stalls
        core.ledger.register(Kind.READ_BLOCKS, MessageCodec(pb.ReadBlocksRequest), self._pin_read)
        core.ledger.register(Kind.WRITE_BLOCKS, MessageCodec(pb.WriteBlocksHeader), self._pin_write)

    async def ReadBlocks(self, request: pb.ReadBlocksRequest, context: Context) -> None:
        """Streams images in chunks."""
        core = self._core
        refs = core.convert.refs(request.blocks, "blocks")
        rank_index = self._rank_index(request.rank_index)
        end = self._end_of_range(request.offset, request.length)
        async with PinnedWork(core, core.ledger.perform(Kind.READ_BLOCKS, request)) as pinned:
            for block_index, block_id in enumerate(refs.block_ids.tolist()):
                for offset in range(request.offset, end, core.limits.max_chunk_bytes):
                    length = min(core.limits.max_chunk_bytes, end - offset)
                    chunk = await pinned.run(
                        partial(self._read, rank_index, block_index, block_id, offset, length), Chore.READ, length
                    )
                    await self._stalls.moving(context.write(chunk), "the reader")

    async def WriteBlocks(
        self, requests: AsyncIterator[pb.WriteBlocksRequest], _context: Context
    ) -> pb.WriteBlocksResponse:
        """Writes chunks as they come, each checked first."""
        core = self._core
        header = await self._header(requests)
        session = core.convert.session(header.session)
        refs = core.convert.refs(header.blocks, "header.blocks")
        rank_index = self._rank_index(header.rank_index)
        self._check_fingerprint(header.layout_fingerprint)
        written = 0
        async with self._writing(header) as pinned:
            while (message := await self._stalls.moving(anext(requests, None), "the writer")) is not None:
                chunk = self._checked_chunk(message, refs)
                core.pool.check_session(*session)  # a session that was lost meanwhile writes nothing more
                block_id = int(refs.block_ids[chunk.block_index])
                await pinned.run(partial(self._write, rank_index, block_id, chunk), Chore.WRITE, len(chunk.data))
                written += len(chunk.data)
        return pb.WriteBlocksResponse(incarnation=core.incarnation, written_bytes=written)

    @contextlib.asynccontextmanager
    async def _writing(self, header: pb.WriteBlocksHeader) -> AsyncIterator[PinnedWork]:
        core = self._core
        with core.admission.of_session(header.session.session_id):
            async with PinnedWork(core, core.ledger.perform(Kind.WRITE_BLOCKS, header)) as pinned:
                yield pinned

    def _pin_read(self, request: pb.ReadBlocksRequest, _now_ns: int) -> int:
        core, session = self._core, self._core.convert.session(request.session)
        pin = core.pool.pin_read(*session, core.convert.refs(request.blocks, "blocks"))
        return core.works.begin(MemoryWork(session[0], pin), is_stream=True)

    def _pin_write(self, header: pb.WriteBlocksHeader, _now_ns: int) -> int:
        core, session = self._core, self._core.convert.session(header.session)
        pin = core.pool.pin_write(*session, core.convert.refs(header.blocks, "header.blocks"))
        return core.works.begin(MemoryWork(session[0], pin), is_stream=True)

    def _rank_index(self, rank_index: int) -> int:
        ranks = len(self._core.description.tp_ranks)
        if rank_index >= ranks:
            raise BadFieldError(f"rank_index: {rank_index}, but the server holds {ranks} ranks", field="rank_index")
        return rank_index

    def _end_of_range(self, offset: int, length: int) -> int:
        image_bytes = self._core.description.layout.block.image_bytes
        end = offset + length if length else image_bytes
        if not offset <= end <= image_bytes:
            raise BlockIndexOutOfRangeError(
                f"bytes {offset} to {end} are not in an image of {image_bytes} bytes", field="offset"
            )
        return end

    def _read(self, rank_index: int, block_index: int, block_id: int, offset: int, length: int) -> bytes:
        head = pb.ReadBlocksResponse(incarnation=self._core.incarnation, block_index=block_index, offset=offset)
        return encode_chunk(head, self._core.memory.read_image(rank_index, block_id, offset, length))

    def _write(self, rank_index: int, block_id: int, chunk: pb.WriteBlocksChunk) -> None:
        data = chunk.data
        if xxhash.xxh3_64_intdigest(data) != chunk.checksum:
            raise ChecksumMismatchError(
                f"chunk at offset {chunk.offset} of block_index {chunk.block_index}: not the bytes of its checksum",
                field="chunk.checksum",
            )
        self._core.memory.write_image(rank_index, block_id, chunk.offset, data)

    async def _header(self, requests: AsyncIterator[pb.WriteBlocksRequest]) -> pb.WriteBlocksHeader:
        first = await self._stalls.moving(anext(requests, None), "the writer")
        if first is None or first.WhichOneof("message") != "header":
            raise BadFieldError("the first message of the stream must be a header", field="header")
        return first.header

    def _check_fingerprint(self, fingerprint: str) -> None:
        expected = self._core.description.layout.block.fingerprint
        if fingerprint and fingerprint != expected:
            raise LayoutMismatchError(
                f"the bytes are of layout {fingerprint[:64]}, the pool has {expected}",
                field="header.layout_fingerprint",
            )

    def _checked_chunk(self, message: pb.WriteBlocksRequest, refs: BlockRefs) -> pb.WriteBlocksChunk:
        if message.WhichOneof("message") != "chunk":
            raise BadFieldError("every message after the first must be a chunk", field="chunk")
        chunk, limit = message.chunk, self._core.limits.max_chunk_bytes
        if len(chunk.data) > limit:
            raise BatchTooLargeError(
                f"chunk of {len(chunk.data)} bytes, more than {limit}", field="chunk.data", limit=limit
            )
        if chunk.block_index >= len(refs):
            raise BlockIndexOutOfRangeError(
                f"block_index {chunk.block_index}, but the header has {len(refs)} blocks", field="chunk.block_index"
            )
        self._end_of_range(chunk.offset, len(chunk.data))
        return chunk
