"""Moves for asyncio; as many at a time as there are tasks that make them."""

# ruff: noqa: ASYNC109 — the deadline is that of several calls, each of which is sent what is left of it

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

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

T = TypeVar("T")


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
    async with _or_cancelled(transfer, source):
        blocks, carried = await _carry(transfer, source, destination, address or source.target, via, deadline)
    return Moved(blocks, num_tokens, prefix_hash, carried)


async def _lend(
    state: int | Prefix | BlockRefs, source: AsyncSession, deadline: Deadline
) -> tuple[Transfer, int, bytes]:
    """Lends a state; tells its tokens and its hash as well, where they are known."""
    ttl = deadline.left + SPARE_SECONDS

    async def lend(what: BlockRefs | int) -> Transfer:
        blocks, sequence_id = (what, None) if isinstance(what, BlockRefs) else (None, what)
        lending = source.create_transfer(blocks, sequence_id=sequence_id, ttl=ttl, timeout=deadline.left)
        return await _or_undone(lending, partial(source.cancel_transfer, timeout=RELEASE_SECONDS))

    if isinstance(state, BlockRefs):
        return await lend(state), 0, b""
    if not isinstance(state, Prefix):
        transfer = await lend(state)
        return transfer, transfer.num_tokens, b""
    block_tokens = (await source.get_pool(timeout=deadline.left)).block_tokens
    free = partial(source.free_blocks, timeout=RELEASE_SECONDS)
    looking_up = source.lookup_prefix(state.hashes, namespace=state.namespace, timeout=deadline.left)
    hit = await _or_undone(looking_up, lambda hit: free(hit.block) if hit else asyncio.sleep(0))
    if hit is None:
        raise PrefixNotFoundError(f"none of {len(state.hashes)} prefixes is known at {source.target}")
    try:
        transfer = await lend(hit.block)
    except BaseException:
        await asyncio.shield(free(hit.block))
        raise
    async with _or_cancelled(transfer, source):
        await asyncio.shield(free(hit.block))
    return transfer, (hit.hash_index + 1) * block_tokens, hit.prefix_hash


@contextlib.asynccontextmanager
async def _or_cancelled(transfer: Transfer, source: AsyncSession) -> AsyncIterator[None]:
    """Cancels a transfer where what is done inside fails, or its task is cancelled."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(StatepoolError):
            await asyncio.shield(source.cancel_transfer(transfer, timeout=RELEASE_SECONDS))
        raise


async def _or_undone(call: Coroutine[Any, Any, T], undo: Callable[[T], Awaitable[object]]) -> T:
    """Awaits a call to its end, also where the task is cancelled meanwhile: then what it has given is given back."""
    calling = asyncio.create_task(call)
    try:
        return await asyncio.shield(calling)
    except asyncio.CancelledError:
        with contextlib.suppress(StatepoolError, TimeoutError):
            async with asyncio.timeout(RELEASE_SECONDS):
                await undo(await calling)
        raise


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
    free = partial(destination.free_blocks, timeout=RELEASE_SECONDS)
    allocating = destination.allocate_blocks(transfer.block_count, zero=False, timeout=deadline.left)
    blocks = await _or_undone(allocating, free)
    try:
        for index, block in enumerate(blocks):
            pulled = {rank: await _pull(transfer, source, rank, index, deadline) for rank in plan.source_ranks}
            for rank_index, image in plan.convert(pulled):
                await destination.write_blocks(block, image, rank_index=rank_index, timeout=deadline.left)
        await source.complete_transfer(transfer, timeout=deadline.left)  # refused if what was read may be torn
    except BaseException:
        with contextlib.suppress(StatepoolError):
            await asyncio.shield(free(blocks))
        raise
    return blocks


async def _pull(transfer: Transfer, source: AsyncSession, rank: int, index: int, deadline: Deadline) -> bytes:
    chunks = source.pull_blocks(transfer, tp_rank=rank, block_index=index, block_count=1, timeout=deadline.left)
    return b"".join([chunk.data async for chunk in chunks])
