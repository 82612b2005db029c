"""What can be asked of a server with or without a session, for asyncio."""

# ruff: noqa: ASYNC109 — a deadline is sent to the server with each call, which asyncio.timeout cannot do

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING

from statepool import calls
from statepool.aio.transport import AsyncTransport

if TYPE_CHECKING:
    from statepool.byte_chunks import UncheckedChunk
    from statepool.calls.transfers import BlockIds, Checksums
    from statepool.descriptions import Pool
    from statepool.results import Chunk
    from statepool.transfers import NixlEndpoint, Transfer, TransferInfo


class AsyncEndpoint:
    """A server, as clients and their sessions reach it; see `statepool.sync.endpoint.Endpoint`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    @property
    def target(self) -> str:
        """Where it is connected, in gRPC's naming."""
        return self._transport.target

    async def get_pool(self, *, timeout: float | None = None) -> Pool:
        """Returns the pool: layout, capacity, usage of the moment, limits, features; see `Endpoint.get_pool`."""
        return await self._transport.execute(calls.pool.get_pool(), timeout)

    async def list_transfers(self, *, page_size: int = 0, timeout: float | None = None) -> AsyncIterator[TransferInfo]:
        """Lists open transfers in the order of their ids; see `Endpoint.list_transfers`."""
        token = ""
        while True:
            page, token = await self._transport.execute(calls.transfers.list_transfers(page_size, token), timeout)
            for transfer in page:
                yield transfer
            if not token:
                return

    async def pull_blocks(
        self,
        transfer: Transfer,
        *,
        tp_rank: int = 0,
        block_index: int = 0,
        offset: int = 0,
        block_count: int | None = None,
        layout_fingerprint: str = "",
        timeout: float | None = None,
    ) -> AsyncGenerator[Chunk, None]:
        """Streams the images of lent states in chunks, each checked here and against the lease there.

        See `Endpoint.pull_blocks`.
        """
        deadline = self._transport.deadline(timeout)
        reader = await self._transfer_reader(
            transfer, tp_rank, block_index, offset, block_count, layout_fingerprint, deadline
        )
        async with aclosing(self._transport.pull(reader, reader.accept, deadline)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def pull_unchecked(
        self,
        transfer: Transfer,
        *,
        tp_rank: int = 0,
        block_index: int = 0,
        offset: int = 0,
        block_count: int | None = None,
        layout_fingerprint: str = "",
        timeout: float | None = None,
    ) -> AsyncGenerator[UncheckedChunk, None]:
        """Streams as `pull_blocks`, without a copy, and leaves it to the caller to check each chunk, on any thread.

        See `Endpoint.pull_unchecked`.
        """
        deadline = self._transport.deadline(timeout)
        reader = await self._transfer_reader(
            transfer, tp_rank, block_index, offset, block_count, layout_fingerprint, deadline
        )
        async with aclosing(self._transport.pull(reader, reader.follow, deadline)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def describe_transfer(
        self, transfer: Transfer, *, timeout: float | None = None
    ) -> tuple[NixlEndpoint, BlockIds]:
        """Tells where the memory of lent states lies, for a server that reads it over NIXL; see `Endpoint`."""
        return await self._transport.execute(calls.transfers.describe_transfer(transfer), timeout)

    async def sum_transfer(self, transfer: Transfer, *, timeout: float | None = None) -> Checksums:
        """Has checksums of lent states computed, which were still lent then; see `Endpoint.sum_transfer`."""
        return await self._transport.execute(calls.transfers.sum_transfer(transfer), timeout)

    async def complete_transfer(self, transfer: Transfer, *, timeout: float | None = None) -> None:
        """Ends a transfer whose reader has everything; see `Endpoint.complete_transfer`."""
        await self._transport.execute(calls.transfers.complete_transfer(transfer), timeout)

    async def cancel_transfer(self, transfer: Transfer, *, timeout: float | None = None) -> None:
        """Ends a transfer that nobody wants any more; see `Endpoint.cancel_transfer`."""
        await self._transport.execute(calls.transfers.cancel_transfer(transfer), timeout)

    async def _transfer_reader(
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
            image_bytes=(await self._transport.pool(deadline)).layout.block.image_bytes,
        )
