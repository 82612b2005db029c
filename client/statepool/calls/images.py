"""Messages of the byte streams: block images cut into checked chunks, and put together again."""

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import xxhash
from numpy.typing import NDArray

from statepool.byte_chunks import UncheckedChunk
from statepool.errors import DataLossError
from statepool.refs import BlockRefs
from statepool.results import Chunk
from statepool.v1 import block_pb2 as pb
from statepool.v1.types_pb2 import SessionRef
from statepool.wire import refs_to_wire

Images: TypeAlias = NDArray[np.uint8]
"""Bytes of block images, ``[n, length]``."""

MIN_STREAM_BYTES_PER_SECOND = 64 * 2**20
"""A stream may take its timeout and, on top, as long as its bytes need at this rate (a tenth of 10 Gbit/s Ethernet)."""
MAX_STREAM_SECONDS = 3600.0
"""Most that is added; a nonsensical length must not overflow gRPC's deadline, since the server's answer says more."""


def stream_seconds(nbytes: int) -> float:
    """Computes what a stream of so many bytes may take on top of its timeout."""
    return min(nbytes / MIN_STREAM_BYTES_PER_SECOND, MAX_STREAM_SECONDS)


def as_images(data: "bytes | bytearray | memoryview | Images", rows: int) -> Images:
    """Reads what a caller wants to write.

    Args:
        data: uint8 ``[rows, length]``, or as many bytes, image after image.
        rows: Blocks to write.

    Returns:
        uint8 ``[rows, length]``, without a copy.

    Raises:
        ValueError: Another dtype or shape, or bytes that cannot be divided evenly among the rows.
    """
    if isinstance(data, np.ndarray):
        if data.dtype != np.uint8 or data.ndim != 2 or len(data) != rows:
            raise ValueError(f"data: {data.dtype} {list(data.shape)} is not uint8 [{rows}, length]")
        return data
    flat = np.frombuffer(data, np.uint8)
    if len(flat) % max(rows, 1) or (len(flat) and not rows):
        raise ValueError(f"data: {len(flat)} bytes are not {rows} images of one length")
    return flat.reshape(rows, len(flat) // max(rows, 1))


def write_messages(
    session: SessionRef,
    blocks: BlockRefs,
    images: Images,
    *,
    offset: int,
    rank_index: int,
    layout_fingerprint: str,
    max_chunk_bytes: int,
) -> Iterator[pb.WriteBlocksRequest]:
    """Yields the messages of a WriteBlocks stream: a header, then the chunks of each image in order."""
    header = pb.WriteBlocksHeader(
        session=session,
        blocks=refs_to_wire(blocks),
        rank_index=rank_index,
        layout_fingerprint=layout_fingerprint,
    )
    yield pb.WriteBlocksRequest(header=header)
    for block_index, image in enumerate(images):
        for start in range(0, len(image), max_chunk_bytes):
            data = image[start : start + max_chunk_bytes].tobytes()
            yield pb.WriteBlocksRequest(
                chunk=pb.WriteBlocksChunk(
                    block_index=block_index,
                    offset=offset + start,
                    data=data,
                    checksum=xxhash.xxh3_64_intdigest(data),
                )
            )


class ImageStream:
    """Checks the chunks of a stream of images: their checksums, and that nothing is missing between them.

    Attributes:
        shape: ``(n, length)``: images, and bytes of each.
    """

    def __init__(self, shape: tuple[int, int], *, begin: int = 0, offset: int = 0) -> None:
        """Plans a stream.

        Args:
            shape: Images, and bytes of each.
            begin: Bytes, counted over all images, that it does not begin with.
            offset: First byte of each image.
        """
        self.shape = shape
        self._begin = self._expected = begin
        self._offset = offset

    @property
    def nbytes(self) -> int:
        """Bytes of the whole stream."""
        return max(0, self.shape[0] * self.shape[1] - self._begin)

    @property
    def extra_seconds(self) -> float:
        """What the stream may take on top of its timeout."""
        return stream_seconds(self.nbytes)

    def new_images(self) -> Images:
        """Makes room for all images, ``[n, length]``."""
        return np.empty(self.shape, np.uint8)

    def accept(self, unchecked: UncheckedChunk) -> Chunk:
        """Checks the next chunk.

        Raises:
            ChecksumMismatchError: Its bytes are not those that the server read.
            DataLossError: It is not the next one.
        """
        self.follow(unchecked).check()
        return Chunk(unchecked.block_index, unchecked.offset, bytes(unchecked.data))

    def follow(self, chunk: UncheckedChunk) -> UncheckedChunk:
        """Checks that a chunk is the next one, and not its bytes.

        Raises:
            DataLossError: It is not.
        """
        start, nbytes = chunk.offset - self._offset, len(chunk.data)
        position = chunk.block_index * self.shape[1] + start
        if position != self._expected or chunk.block_index >= self.shape[0] or start + nbytes > self.shape[1]:
            raise DataLossError(
                f"block_index {chunk.block_index}, offset {chunk.offset}, {nbytes} bytes: "
                f"not what follows after {self._expected} bytes of {list(self.shape)}"
            )
        self._expected += nbytes
        return chunk

    def place(self, chunk: Chunk, images: Images) -> None:
        """Puts a chunk where it belongs in ``[n, length]``."""
        start = chunk.offset - self._offset
        images[chunk.block_index, start : start + len(chunk.data)] = np.frombuffer(chunk.data, np.uint8)

    def finish(self) -> None:
        """Checks that the stream was whole.

        Raises:
            DataLossError: It ended early.
        """
        whole = self._begin + self.nbytes
        if self._expected != whole:
            raise DataLossError(f"the stream ended after {self._expected} of {whole} bytes")


class ImageReader(ImageStream):
    """Checks the chunks of a ReadBlocks stream.

    Attributes:
        request: What opens the stream.
    """

    def __init__(
        self,
        session: SessionRef,
        blocks: BlockRefs,
        *,
        offset: int,
        length: int | None,
        rank_index: int,
        image_bytes: int,
    ) -> None:
        """Plans a stream.

        Args:
            session: The reader's session.
            blocks: Blocks to read.
            offset: First byte of each image.
            length: Bytes of each image, or None: to its end.
            rank_index: Index into ``Pool.tp_ranks``.
            image_bytes: Bytes of a whole image.

        Raises:
            ValueError: length is given and not positive.
        """
        if length is not None and length <= 0:
            raise ValueError(f"length: {length} is not positive")
        self.request = pb.ReadBlocksRequest(
            session=session, blocks=refs_to_wire(blocks), rank_index=rank_index, offset=offset, length=length or 0
        )
        super().__init__((len(blocks), max(0, image_bytes - offset) if length is None else length), offset=offset)
