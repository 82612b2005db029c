"""Moves for asyncio; as many at a time as there are tasks that make them."""

# ruff: noqa: ASYNC109 — the deadline is that of several calls, each of which is sent what is left of it

import asyncio
import contextlib

from statepool.aio.session import AsyncSession
from statepool.disagg.moves import DEFAULT_SECONDS
from statepool.disagg.states import (
    NO_WAY,
    RELEASE_SECONDS,
    SPARE_SECONDS,
    Deadline,
    Moved,
    Prefix,
    PrefixNotFoundError,
    Relay,
    Via,
)
from statepool.errors import StatepoolError
from statepool.refs import BlockRefs
from statepool.transfers import Transfer


async def move_async(
    state: int | Prefix | BlockRefs,
    *,
    source: AsyncSession,
    destination: AsyncSession,
    address: str = "",
    via: Via = Via.AUTO,
    timeout: float = DEFAULT_SECONDS,
) -> Moved:
    """Takes a state from the pool of one session to that of another; see `move`.

    A task that is cancelled gives the lease and the blocks back before it ends.
    """
    deadline = Deadline(timeout)
    transfer, num_tokens, prefix_hash = await _lend(state, source, deadline)
    try:
        blocks, carried = await _carry(transfer, source, destination, address or source.target, via, deadline)
    except BaseException:
        with contextlib.suppress(StatepoolError):
            await asyncio.shield(source.cancel_transfer(transfer, timeout=RELEASE_SECONDS))
        raise
    return Moved(blocks, num_tokens, prefix_hash, carried)


async def _lend(
    state: int | Prefix | BlockRefs, source: AsyncSession, deadline: Deadline
) -> tuple[Transfer, int, bytes]:
    """Lends a state; tells its tokens and its hash as well, where they are known."""
    ttl = deadline.left + SPARE_SECONDS
    if isinstance(state, BlockRefs):
        return await source.create_transfer(state, ttl=ttl, timeout=deadline.left), 0, b""
    if not isinstance(state, Prefix):
        transfer = await source.create_transfer(sequence_id=state, ttl=ttl, timeout=deadline.left)
        return transfer, transfer.num_tokens, b""
    hit = await source.lookup_prefix(state.hashes, namespace=state.namespace, timeout=deadline.left)
    if hit is None:
        raise PrefixNotFoundError(f"none of {len(state.hashes)} prefixes is known at {source.target}")
    try:
        transfer = await source.create_transfer(hit.block, ttl=ttl, timeout=deadline.left)
    finally:
        await source.free_blocks(hit.block, timeout=RELEASE_SECONDS)
    block_tokens = (await source.get_pool(timeout=deadline.left)).block_tokens
    return transfer, (hit.hash_index + 1) * block_tokens, hit.prefix_hash


async def _carry(
    transfer: Transfer, source: AsyncSession, destination: AsyncSession, address: str, via: Via, deadline: Deadline
) -> tuple[BlockRefs, Via]:
    if via is not Via.RELAY:
        try:
            received = await destination.receive_transfer(transfer, source=address, timeout=deadline.left)
            return received.blocks, Via.SERVER
        except NO_WAY:
            if via is Via.SERVER:
                raise
    return await _relay(transfer, source, destination, deadline), Via.RELAY


async def _relay(transfer: Transfer, source: AsyncSession, destination: AsyncSession, deadline: Deadline) -> BlockRefs:
    plan = Relay(await source.get_pool(timeout=deadline.left), await destination.get_pool(timeout=deadline.left))
    blocks = await destination.allocate_blocks(transfer.block_count, zero=False, timeout=deadline.left)
    try:
        for index, block in enumerate(blocks):
            pulled = {rank: await _pull(transfer, source, rank, index, deadline) for rank in plan.source_ranks}
            for rank_index, image in plan.convert(pulled):
                await destination.write_blocks(block, image, rank_index=rank_index, timeout=deadline.left)
        await source.complete_transfer(transfer, timeout=deadline.left)  # refused if what was read may be torn
    except BaseException:
        with contextlib.suppress(StatepoolError):
            await asyncio.shield(destination.free_blocks(blocks, timeout=RELEASE_SECONDS))
        raise
    return blocks


async def _pull(transfer: Transfer, source: AsyncSession, rank: int, index: int, deadline: Deadline) -> bytes:
    chunks = source.pull_blocks(transfer, tp_rank=rank, block_index=index, block_count=1, timeout=deadline.left)
    return b"".join([chunk.data async for chunk in chunks])
