"""What can be asked of a server with or without a session, with blocking calls."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

from statepool import calls
from statepool.sync.transport import Transport

if TYPE_CHECKING:
    from statepool.byte_chunks import UncheckedChunk
    from statepool.calls.transfers import BlockIds, Checksums
    from statepool.descriptions import Pool
    from statepool.results import Chunk
    from statepool.transfers import NixlEndpoint, Transfer, TransferInfo


class Endpoint:
    """A server, as clients and their sessions reach it."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    @property
    def target(self) -> str:
        """Where it is connected, in gRPC's naming."""
        return self._transport.target

    def get_pool(self, *, timeout: float | None = None) -> Pool:
        """Returns the pool: layout, capacity, usage of the moment, limits, features."""
        return self._transport.execute(calls.pool.get_pool(), timeout)

    def list_transfers(self, *, page_size: int = 0, timeout: float | None = None) -> Iterator[TransferInfo]:
        """Lists open transfers in the order of their ids.

        Args:
            page_size: Most transfers that are asked for at a time; 0: the server's limit.
            timeout: Deadline in seconds of each page.
        """
        token = ""
        while True:
            page, token = self._transport.execute(calls.transfers.list_transfers(page_size, token), timeout)
            yield from page
            if not token:
                return

    def pull_blocks(
        self,
        transfer: Transfer,
        *,
        tp_rank: int = 0,
        block_index: int = 0,
        offset: int = 0,
        block_count: int | None = None,
        layout_fingerprint: str = "",
        timeout: float | None = None,
    ) -> Generator[Chunk, None, None]:
        """Streams the images of lent states in chunks, each checked here and against the lease there.

        A stream that was cut off can be continued by another call, from the last chunk on.

        Args:
            transfer: A transfer of this server, whoever has created it.
            tp_rank: Tensor-parallel rank whose images are wanted.
            block_index: Image to begin with.
            offset: First byte of it; the images after it come whole.
            block_count: Images to stream; None: to the last.
            layout_fingerprint: Of the layout that is expected; empty: not checked.
            timeout: Deadline in seconds, to which the time that the bytes need at 64 MiB/s is added.

        Yields:
            The chunks, in the order of images and offsets, without gaps.

        Raises:
            TransferNotFoundError: The transfer has ended, or the token is another.
            LayoutMismatchError: The pool has another layout, or does not hold the rank.
            BlockBusyError: A lent block is in quarantine; a retry helps.
            BlockIndexOutOfRangeError: The place lies behind the end.
            DataLossError: Bytes are wrong (`ChecksumMismatchError`) or missing.
            ValueError: block_count is not positive.
        """
        deadline = self._transport.deadline(timeout)
        reader = self._transfer_reader(
            transfer, tp_rank, block_index, offset, block_count, layout_fingerprint, deadline
        )
        yield from self._transport.pull(reader, reader.accept, deadline)

    def pull_unchecked(
        self,
        transfer: Transfer,
        *,
        tp_rank: int = 0,
        block_index: int = 0,
        offset: int = 0,
        block_count: int | None = None,
        layout_fingerprint: str = "",
        timeout: float | None = None,
    ) -> Generator[UncheckedChunk, None, None]:
        """Streams as `pull_blocks`, but without a copy; the caller checks each chunk, on any thread.

        Yields:
            The chunks; see `UncheckedChunk.check`.

        Raises:
            StatepoolError: As `pull_blocks`, except for wrong bytes.
        """
        deadline = self._transport.deadline(timeout)
        reader = self._transfer_reader(
            transfer, tp_rank, block_index, offset, block_count, layout_fingerprint, deadline
        )
        yield from self._transport.pull(reader, reader.follow, deadline)

    def describe_transfer(self, transfer: Transfer, *, timeout: float | None = None) -> tuple[NixlEndpoint, BlockIds]:
        """Tells where the memory of lent states lies, for a server that reads it over NIXL.

        Returns:
            How it is reached, and the block that holds each state, ``[n]``.

        Raises:
            FeatureUnavailableError: The server has no NIXL, or a state is spread over two blocks.
            StatepoolError: As `pull_blocks`.
        """
        return self._transport.execute(calls.transfers.describe_transfer(transfer), timeout)

    def sum_transfer(self, transfer: Transfer, *, timeout: float | None = None) -> Checksums:
        """Has the server compute checksums of lent states, and makes sure that they are still lent afterwards.

        Returns:
            xxh3_64 of the states of each image, ``[n * ranks]``, those of one block side by side.

        Raises:
            StatepoolError: As `describe_transfer`.
        """
        return self._transport.execute(calls.transfers.sum_transfer(transfer), timeout)

    def complete_transfer(self, transfer: Transfer, *, timeout: float | None = None) -> None:
        """Ends a transfer whose reader has everything; again, it does nothing.

        Raises:
            TransferNotFoundError: It has expired or was cancelled, or the token is another.
        """
        self._transport.execute(calls.transfers.complete_transfer(transfer), timeout)

    def cancel_transfer(self, transfer: Transfer, *, timeout: float | None = None) -> None:
        """Ends a transfer that nobody wants any more; readers are cut off. Again, it does nothing.

        Raises:
            TransferNotFoundError: It has expired or was completed, or the token is another.
        """
        self._transport.execute(calls.transfers.cancel_transfer(transfer), timeout)

    def _transfer_reader(
        self,
        transfer: Transfer,
        tp_rank: int,
        block_index: int,
        offset: int,
        block_count: int | None,
        layout_fingerprint: str,
        deadline: float,
    ) -> calls.transfers.TransferReader:
        return calls.transfers.TransferReader(
            transfer,
            tp_rank=tp_rank,
            block_index=block_index,
            offset=offset,
            block_count=block_count,
            layout_fingerprint=layout_fingerprint,
            image_bytes=self._transport.pool(deadline).layout.block.image_bytes,
        )
