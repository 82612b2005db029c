"""A session for asyncio."""

# ruff: noqa: ASYNC109 — a deadline is sent to the server with each call, which asyncio.timeout cannot do

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from statepool import calls
from statepool.aio.streams import AsyncBlockStreams
from statepool.channel import seconds_left
from statepool.sequences import Admission, Commits, Execution, Notice, Schedules

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from statepool.aio.scheduler import AsyncScheduler
    from statepool.calls.sequences import StepArguments
    from statepool.outcomes import StepOutcome
    from statepool.refs import BlockRefs
    from statepool.results import Commit, Eviction, Hit
    from statepool.transfers import Received, Transfer


class AsyncSession(AsyncBlockStreams):
    """A lease on blocks, kept alive in the background until it is closed or lost.

    Made by `AsyncClient.create_session`; an async context manager that closes it. The methods, their arguments and
    their errors are those of `statepool.sync.session.Session`.
    """

    async def allocate_blocks(
        self, count: int, *, zero: bool = True, max_wait: float | None = None, timeout: float | None = None
    ) -> BlockRefs:
        """Allocates blocks: all of them or none; see `Session.allocate_blocks`."""
        return await self._transport.execute(
            calls.blocks.allocate_blocks(self._ref, count, zero, max_wait), timeout, self._lease
        )

    async def free_blocks(self, blocks: BlockRefs, *, timeout: float | None = None) -> None:
        """Drops one reference per row; see `Session.free_blocks`."""
        await self._transport.execute(calls.blocks.free_blocks(self._ref, blocks), timeout, self._lease)

    async def retain_blocks(self, blocks: BlockRefs, *, timeout: float | None = None) -> None:
        """Takes one more reference per row, to committed blocks or the session's own; see `Session.retain_blocks`."""
        await self._transport.execute(calls.blocks.retain_blocks(self._ref, blocks), timeout, self._lease)

    async def commit_blocks(
        self,
        blocks: BlockRefs,
        *,
        prefix_hashes: Sequence[bytes],
        boundary_tokens: ArrayLike,
        written_through_tokens: ArrayLike,
        namespace: str = "",
        timeout: float | None = None,
    ) -> Commit:
        """Declares that blocks hold exactly the state at a boundary: they become immutable and may be found.

        See `Session.commit_blocks`.
        """
        call = calls.blocks.commit_blocks(
            self._ref, blocks, prefix_hashes, boundary_tokens, written_through_tokens, namespace
        )
        return await self._transport.execute(call, timeout, self._lease)

    async def lookup_prefix(
        self, prefix_hashes: Sequence[bytes], *, namespace: str = "", timeout: float | None = None
    ) -> Hit | None:
        """Finds the deepest committed block of a chain of prefixes and takes a reference to it in the same step.

        See `Session.lookup_prefix`.
        """
        return await self._transport.execute(
            calls.blocks.lookup_prefix(self._ref, prefix_hashes, namespace), timeout, self._lease
        )

    async def evict_blocks(
        self,
        blocks: BlockRefs | None = None,
        *,
        prefix_hashes: Sequence[bytes] = (),
        namespace: str = "",
        timeout: float | None = None,
    ) -> Eviction:
        """Takes committed blocks out of the prefix index, by ref or by hash; those without a reference become free.

        See `Session.evict_blocks`.
        """
        return await self._transport.execute(
            calls.blocks.evict_blocks(self._ref, blocks, prefix_hashes, namespace), timeout, self._lease
        )

    async def copy_blocks(
        self,
        *,
        src: BlockRefs,
        dst: BlockRefs,
        token_bias: ArrayLike = 0,
        temporal_src: BlockRefs | None = None,
        timeout: float | None = None,
    ) -> int:
        """Copies states between blocks on every rank and returns when it is done; see `Session.copy_blocks`."""
        return await self._transport.execute(
            calls.blocks.copy_blocks(self._ref, src, dst, token_bias, temporal_src), timeout, self._lease
        )

    async def create_transfer(
        self,
        blocks: BlockRefs | None = None,
        *,
        sequence_id: int | None = None,
        ttl: float = 60.0,
        peer: str = "",
        timeout: float | None = None,
    ) -> Transfer:
        """Lends states to a reader on another server, under a lease; see `Session.create_transfer`."""
        call = calls.transfers.create_transfer(self._ref, blocks, sequence_id, ttl, peer)
        return await self._transport.execute(call, timeout, self._lease)

    async def receive_transfer(self, transfer: Transfer, *, source: str, timeout: float | None = None) -> Received:
        """Has the server pull the states of a transfer into blocks of its own; see `Session.receive_transfer`."""
        deadline = self._transport.deadline(timeout)
        pool = await self._transport.pool(deadline)
        nbytes = transfer.block_count * pool.layout.block.image_bytes * len(pool.tp_ranks)
        extra_seconds = calls.images.stream_seconds(nbytes)
        call = calls.transfers.receive_transfer(self._ref, transfer, source, extra_seconds)
        return await self._transport.execute(call, seconds_left(deadline), self._lease)

    def scheduler(
        self, *, execution: Execution = Execution.SERVER, on_notice: Callable[[Notice], object] | None = None
    ) -> AsyncScheduler:
        """Makes a scheduler, whose stream ``async with`` opens and closes; see `Session.scheduler`."""
        from statepool.aio.scheduler import AsyncScheduler

        return AsyncScheduler(self._transport, self._lease, execution, on_notice)

    async def step(
        self,
        number: int,
        *,
        execution: Execution = Execution.SERVER,
        admit: Sequence[Admission] = (),
        schedule: Schedules | None = None,
        commit: Commits | None = None,
        finish: ArrayLike = (),
        settled_step: int | None = None,
        partial_admission: bool = False,
        timeout: float | None = None,
    ) -> StepOutcome:
        """Applies one engine step without a stream; see `Session.step`."""
        arguments: StepArguments = {
            "admit": admit,
            "schedule": schedule,
            "commit": commit,
            "finish": finish,
            "settled_step": settled_step,
            "partial_admission": partial_admission,
        }
        call = calls.sequences.step(self._ref, number, execution, arguments)
        return await self._transport.execute(call, timeout, self._lease)

    async def delete(self, *, timeout: float | None = None) -> int:
        """Ends the session; whatever comes of it, the handle is closed; see `Session.delete`."""
        deadline = self._transport.deadline(timeout)
        try:
            await self._transport.hold(self._lease, deadline)
        finally:
            self._transport.leases.give_back(self._lease)
        left = seconds_left(deadline)
        return await self._transport.execute(calls.sessions.delete_session(self._ref), left)

    async def close(self) -> None:
        """Ends the session as well as it can, within a second: an unreachable server ends the lease by itself.

        See `Session.close`.
        """
        await self._transport.release(self._lease)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
