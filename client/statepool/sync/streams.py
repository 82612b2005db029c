"""Byte streams of a session, blocking."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

from statepool import calls
from statepool.handle import SessionHandle
from statepool.lease import Lease
from statepool.sync.endpoint import Endpoint
from statepool.sync.transport import Transport

if TYPE_CHECKING:
    from statepool.calls.images import ImageReader, Images
    from statepool.refs import BlockRefs
    from statepool.results import Chunk


class BlockStreams(SessionHandle, Endpoint):
    """The part of a session that reads and writes block images."""

    def __init__(self, transport: Transport, lease: Lease) -> None:
        SessionHandle.__init__(self, lease)
        Endpoint.__init__(self, transport)

    def read_blocks(
        self,
        blocks: BlockRefs,
        *,
        offset: int = 0,
        length: int | None = None,
        rank_index: int = 0,
        timeout: float | None = None,
    ) -> Generator[Chunk, None, None]:
        """Streams block images in chunks, each checked; the blocks are pinned until the iterator ends or is closed.

        Args:
            blocks: Blocks to read, in order.
            offset: First byte of each image.
            length: Bytes of each image; None: to its end.
            rank_index: Index into `Pool.tp_ranks` of the rank to read from.
            timeout: Deadline in seconds, to which the time that the bytes need at 64 MiB/s is added.

        Yields:
            The chunks, in the order of blocks and offsets, without gaps.

        Raises:
            BlockNotOwnedError, BlockBusyError: A block cannot be read.
            BlockIndexOutOfRangeError: The range reaches past the end of the image.
            DataLossError: Bytes are wrong (`ChecksumMismatchError`) or missing.
            ValueError: length is not positive.
        """
        deadline = self._transport.deadline(timeout)
        reader = self._reader(blocks, offset, length, rank_index, deadline)
        yield from self._transport.read(reader, deadline, self._lease)

    def read_images(
        self,
        blocks: BlockRefs,
        *,
        offset: int = 0,
        length: int | None = None,
        rank_index: int = 0,
        timeout: float | None = None,
    ) -> Images:
        """Reads block images into one array; arguments and errors as `read_blocks`.

        Returns:
            uint8 ``[n, length]``.
        """
        deadline = self._transport.deadline(timeout)
        reader = self._reader(blocks, offset, length, rank_index, deadline)
        images = reader.new_images()
        for chunk in self._transport.read(reader, deadline, self._lease):
            reader.place(chunk, images)
        return images

    def write_blocks(
        self,
        blocks: BlockRefs,
        data: bytes | bytearray | memoryview | Images,
        *,
        offset: int = 0,
        rank_index: int = 0,
        layout_fingerprint: str = "",
        timeout: float | None = None,
    ) -> int:
        """Writes bytes of block images, in checked chunks.

        A stream that breaks leaves the chunks before it written; to repeat it is harmless.

        Args:
            blocks: Blocks to write, the session's own and not committed, ``[n]``.
            data: uint8 ``[n, length]``, or as many bytes, image after image.
            offset: First byte of each image.
            rank_index: Index into `Pool.tp_ranks` of the rank to write to.
            layout_fingerprint: Fingerprint of the layout in which the bytes are; empty: not checked.
            timeout: Deadline in seconds, to which the time that the bytes need at 64 MiB/s is added.

        Returns:
            Bytes written.

        Raises:
            BlockNotOwnedError, BlockNotWritableError, BlockBusyError: A block cannot be written.
            BlockIndexOutOfRangeError: The bytes reach past the end of the image.
            LayoutMismatchError: The pool has another layout.
            ChecksumMismatchError: Bytes were damaged on the way.
            ValueError: data has another shape, or cannot be divided evenly among the blocks.
        """
        deadline = self._transport.deadline(timeout)
        images = calls.images.as_images(data, len(blocks))
        messages = calls.images.write_messages(
            self._ref,
            blocks,
            images,
            offset=offset,
            rank_index=rank_index,
            layout_fingerprint=layout_fingerprint,
            max_chunk_bytes=self._transport.pool(deadline).limits.max_chunk_bytes,
        )
        return self._transport.write(messages, deadline, calls.images.stream_seconds(images.nbytes), self._lease)

    def _reader(
        self, blocks: BlockRefs, offset: int, length: int | None, rank_index: int, deadline: float
    ) -> ImageReader:
        image_bytes = self._transport.pool(deadline).layout.block.image_bytes
        return calls.images.ImageReader(
            self._ref, blocks, offset=offset, length=length, rank_index=rank_index, image_bytes=image_bytes
        )
