"""Moves with blocking calls; as many at a time as there are threads that make them."""

import contextlib
from collections.abc import Iterator
from functools import partial

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
from statepool.sync.session import Session
from statepool.transfers import Transfer

DEFAULT_SECONDS = 30.0
"""Deadline of a move that names none."""


def move(
    state: int | Prefix | BlockRefs,
    *,
    source: Session,
    destination: Session,
    address: str = "",
    via: Via = Via.AUTO,
    timeout: float = DEFAULT_SECONDS,
) -> Moved:
    """Takes a state from the pool of one session to that of another.

    The source keeps what it has; finish the sequence if nobody needs it there. A move that fails leaves nothing behind,
    on neither side.

    Args:
        state: Id of a sequence of the source that stands still, a prefix that the source knows, or blocks.
        source: Session that has it.
        destination: Session that gets it.
        address: Where the destination's server reaches the source's; empty: where this process does.
        via: Who carries the bytes.
        timeout: Deadline of the whole move, in seconds.

    Raises:
        PrefixNotFoundError: The source does not know the prefix.
        StepOutOfOrderError, SequenceNotFoundError: The sequence is not there, or does not stand still.
        LayoutMismatchError: The states of the pools cannot be converted.
        PoolExhaustedError: The destination has no room.
        DeadlineExceededError: It took too long.
        StatepoolError: What else either server has against it.
    """
    deadline = Deadline(timeout)
    transfer, num_tokens, prefix_hash = _lend(state, source, deadline)
    with _or_cancelled(transfer, source):
        blocks, carried = _carry(transfer, source, destination, address or source.target, via, deadline)
    return Moved(blocks, num_tokens, prefix_hash, carried)


def _lend(state: int | Prefix | BlockRefs, source: Session, deadline: Deadline) -> tuple[Transfer, int, bytes]:
    """Lends a state; tells its tokens and its hash as well, where they are known."""
    ttl = deadline.left + SPARE_SECONDS
    if isinstance(state, BlockRefs):
        return source.create_transfer(state, ttl=ttl, timeout=deadline.left), 0, b""
    if not isinstance(state, Prefix):
        transfer = source.create_transfer(sequence_id=state, ttl=ttl, timeout=deadline.left)
        return transfer, transfer.num_tokens, b""
    block_tokens = source.get_pool(timeout=deadline.left).block_tokens
    hit = source.lookup_prefix(state.hashes, namespace=state.namespace, timeout=deadline.left)
    if hit is None:
        raise PrefixNotFoundError(f"none of {len(state.hashes)} prefixes is known at {source.target}")
    free = partial(source.free_blocks, hit.block, timeout=RELEASE_SECONDS)
    try:
        transfer = source.create_transfer(hit.block, ttl=ttl, timeout=deadline.left)
    except BaseException:
        free()
        raise
    with _or_cancelled(transfer, source):
        free()
    return transfer, (hit.hash_index + 1) * block_tokens, hit.prefix_hash


@contextlib.contextmanager
def _or_cancelled(transfer: Transfer, source: Session) -> Iterator[None]:
    """Cancels a transfer where what is done inside fails."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(StatepoolError):
            source.cancel_transfer(transfer, timeout=RELEASE_SECONDS)
        raise


def _carry(
    transfer: Transfer, source: Session, destination: Session, address: str, via: Via, deadline: Deadline
) -> tuple[BlockRefs, Via]:
    if via is not Via.RELAY:
        try:
            return destination.receive_transfer(transfer, source=address, timeout=deadline.left).blocks, Via.SERVER
        except NO_WAY:
            if via is Via.SERVER:
                raise
    return _relay(transfer, source, destination, deadline), Via.RELAY


def _relay(transfer: Transfer, source: Session, destination: Session, deadline: Deadline) -> BlockRefs:
    plan = Relay(source.get_pool(timeout=deadline.left), destination.get_pool(timeout=deadline.left))
    blocks = destination.allocate_blocks(transfer.block_count, zero=False, timeout=deadline.left)
    try:
        for index, block in enumerate(blocks):
            pulled = {rank: _pull(transfer, source, rank, index, deadline) for rank in plan.source_ranks}
            for rank_index, image in plan.convert(pulled):
                destination.write_blocks(block, image, rank_index=rank_index, timeout=deadline.left)
        source.complete_transfer(transfer, timeout=deadline.left)  # refused if what was read may be torn
    except BaseException:
        with contextlib.suppress(StatepoolError):
            destination.free_blocks(blocks, timeout=RELEASE_SECONDS)
        raise
    return blocks


def _pull(transfer: Transfer, source: Session, rank: int, index: int, deadline: Deadline) -> bytes:
    chunks = source.pull_blocks(transfer, tp_rank=rank, block_index=index, block_count=1, timeout=deadline.left)
    return b"".join(chunk.data for chunk in chunks)
