"""A session with blocking calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from statepool import calls
from statepool.channel import seconds_left
from statepool.sequences import Admission, Commits, Execution, Notice, Schedules
from statepool.sync.streams import BlockStreams

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from statepool.calls.sequences import StepArguments
    from statepool.outcomes import StepOutcome
    from statepool.refs import BlockRefs
    from statepool.results import Commit, Eviction, Hit
    from statepool.sync.scheduler import Scheduler
    from statepool.transfers import Received, Transfer


class Session(BlockStreams):
    """A lease on blocks, kept alive in the background until it is closed or lost.

    Made by `Client.create_session`; a context manager that closes it. Methods raise the subclasses of `StatepoolError`
    that they list. Any of them raises `UnavailableError` (after retries) and `DeadlineExceededError`, and once the
    session is lost `SessionExpiredError`, `SessionNotFoundError`, `SessionFencedError` or `IncarnationMismatchError`,
    the same one every time. Methods that take block refs raise `GenerationStaleError` and
    `BlockIndexOutOfRangeError` for bad ones. A refused call has changed nothing. ``timeout`` is the deadline in
    seconds; None is the client's.
    """

    def allocate_blocks(
        self, count: int, *, zero: bool = True, max_wait: float | None = None, timeout: float | None = None
    ) -> BlockRefs:
        """Allocates blocks: all of them or none.

        Args:
            count: How many.
            zero: Whether every byte is to be zero.
            max_wait: Seconds that the call may wait for blocks, on top of timeout; None: not at all.
            timeout: Deadline in seconds.

        Returns:
            The blocks, one reference each, ``[count]``.

        Raises:
            PoolExhaustedError: Not enough free and evictable blocks, not even after max_wait.
            OverloadedError: Too many calls wait for blocks already.
            BatchTooLargeError: More than ``Limits.max_batch``.
        """
        return self._transport.execute(
            calls.blocks.allocate_blocks(self._ref, count, zero, max_wait), timeout, self._lease
        )

    def free_blocks(self, blocks: BlockRefs, *, timeout: float | None = None) -> None:
        """Drops one reference per row.

        Raises:
            BlockNotOwnedError: The session holds fewer references than it gives back.
        """
        self._transport.execute(calls.blocks.free_blocks(self._ref, blocks), timeout, self._lease)

    def retain_blocks(self, blocks: BlockRefs, *, timeout: float | None = None) -> None:
        """Takes one more reference per row, to committed blocks or the session's own.

        Raises:
            BlockNotOwnedError: An uncommitted block of another session.
        """
        self._transport.execute(calls.blocks.retain_blocks(self._ref, blocks), timeout, self._lease)

    def commit_blocks(
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

        Args:
            blocks: The blocks, ``[n]``.
            prefix_hashes: Hash of each boundary, 1 to 64 bytes, ``[n]``.
            boundary_tokens: The boundary that each hash names, ``[n]``; a single number applies to every row.
            written_through_tokens: The tokens that each state has seen; must equal the boundary.
            namespace: Keeps the hashes of models and tenants apart.
            timeout: Deadline in seconds.

        Returns:
            Which block holds each hash now.

        Raises:
            BoundaryNotWrittenError: The tokens written through are not the boundary.
            BlockNotOwnedError, BlockNotWritableError, BlockBusyError: A block cannot be committed.
            BadFieldError: A boundary is not a multiple of the pool's block_tokens, a hash has a wrong length, or a
                block is named twice.
            ValueError: Boundaries that are not integers from 0 to 2**32 - 1.
        """
        call = calls.blocks.commit_blocks(
            self._ref, blocks, prefix_hashes, boundary_tokens, written_through_tokens, namespace
        )
        return self._transport.execute(call, timeout, self._lease)

    def lookup_prefix(
        self, prefix_hashes: Sequence[bytes], *, namespace: str = "", timeout: float | None = None
    ) -> Hit | None:
        """Finds the deepest committed block of a chain of prefixes and takes a reference to it in the same step.

        Args:
            prefix_hashes: From the shortest prefix to the longest.
            namespace: Where to look.
            timeout: Deadline in seconds.

        Returns:
            The hit, or None.

        Raises:
            ChecksumMismatchError: The bytes of the block have changed since it was committed, as a server with
                ``--checksums lookup`` has found; nothing was taken, and the next call does not find it any more.
        """
        return self._transport.execute(
            calls.blocks.lookup_prefix(self._ref, prefix_hashes, namespace), timeout, self._lease
        )

    def evict_blocks(
        self,
        blocks: BlockRefs | None = None,
        *,
        prefix_hashes: Sequence[bytes] = (),
        namespace: str = "",
        timeout: float | None = None,
    ) -> Eviction:
        """Takes committed blocks out of the prefix index, by ref or by hash; those without a reference become free.

        Uncommitted blocks and unknown hashes are passed over.

        Args:
            blocks: Blocks to take out.
            prefix_hashes: Hashes to take out.
            namespace: Where the hashes are.
            timeout: Deadline in seconds.
        """
        return self._transport.execute(
            calls.blocks.evict_blocks(self._ref, blocks, prefix_hashes, namespace), timeout, self._lease
        )

    def copy_blocks(
        self,
        *,
        src: BlockRefs,
        dst: BlockRefs,
        token_bias: ArrayLike = 0,
        temporal_src: BlockRefs | None = None,
        timeout: float | None = None,
    ) -> int:
        """Copies states between blocks on every rank and returns when it is done.

        Row i: conv rows ``[bias:]`` of src go to rows ``[:length - bias]`` of dst, the temporal state comes whole from
        temporal_src. src = dst with a bias shifts in place. All copies see the memory as it was before the call.

        Args:
            src: Blocks to copy from, committed or the session's own, ``[n]``.
            dst: Blocks to copy to, the session's own and not committed, ``[n]``.
            token_bias: Tokens to shift conv states by, ``[n]``; a single number applies to every row.
            temporal_src: Blocks from which the temporal states come, ``[n]``; None: src.
            timeout: Deadline in seconds.

        Returns:
            Bytes written, on all ranks.

        Raises:
            BlockNotOwnedError, BlockNotWritableError, BlockBusyError: A block cannot be read or written.
            BadFieldError: A destination is named twice, or a bias is longer than a conv state.
            OverloadedError: Too many copies are queued.
            ValueError: A bias that is no integer from 0 to 2**32 - 1.
        """
        return self._transport.execute(
            calls.blocks.copy_blocks(self._ref, src, dst, token_bias, temporal_src), timeout, self._lease
        )

    def create_transfer(
        self,
        blocks: BlockRefs | None = None,
        *,
        sequence_id: int | None = None,
        ttl: float = 60.0,
        peer: str = "",
        timeout: float | None = None,
    ) -> Transfer:
        """Lends states to a reader on another server, under a lease that outlives the sequence and the session.

        Nobody may write the blocks meanwhile: the server refuses it (`BlockBusyError`), attached processes must not do
        it. A sequence lends the state after its computed tokens, which need not stand at a boundary, and cannot be
        scheduled before the transfer has ended; it can be finished.

        Args:
            blocks: Committed blocks, anybody's, or uncommitted ones of the session that are in no sequence, ``[n]``.
            sequence_id: The sequence, in place of blocks.
            ttl: Seconds that the lease lasts. It is not renewed, so it should outlast the reader's deadline.
            peer: Who it is for, as those who list transfers see it.
            timeout: Deadline in seconds.

        Raises:
            SequenceNotFoundError: No such sequence.
            StepOutOfOrderError: The sequence has an outstanding or unsettled step, or no state yet.
            BlockNotOwnedError, BlockBusyError, BlockInSequenceError: A block that cannot be lent.
            QuotaExceededError: As many transfers are open as are allowed.
            ValueError: Not exactly one of blocks and sequence_id is given.
        """
        call = calls.transfers.create_transfer(self._ref, blocks, sequence_id, ttl, peer)
        return self._transport.execute(call, timeout, self._lease)

    def receive_transfer(self, transfer: Transfer, *, source: str, timeout: float | None = None) -> Received:
        """Allocates blocks and has the server pull the states of a transfer into them, from another server.

        If it fails, or its deadline passes, it leaves no block behind.

        Args:
            transfer: A transfer of the source; it is completed.
            source: Where the server of this session reaches the source, in gRPC's naming: a Unix socket, a loopback
                address, or over TLS any host, if its operator allows it.
            timeout: Deadline in seconds, to which the time that the bytes need at 64 MiB/s is added.

        Returns:
            The blocks.

        Raises:
            PoolExhaustedError: Not enough free and evictable blocks.
            PeerUntrustedError: The operator does not allow that source.
            PeerLostError: The source cannot be reached, or gives nothing any more.
            TransferNotFoundError: The transfer has ended.
            LayoutMismatchError: The source's layout can not be converted to that of this pool.
            DataLossError: Bytes are missing or were damaged on their way (`ChecksumMismatchError`), or the server was
                restarted meanwhile (`StateLostError`).
        """
        deadline = self._transport.deadline(timeout)
        pool = self._transport.pool(deadline)
        nbytes = transfer.block_count * pool.layout.block.image_bytes * len(pool.tp_ranks)
        extra_seconds = calls.images.stream_seconds(nbytes)
        call = calls.transfers.receive_transfer(self._ref, transfer, source, extra_seconds)
        return self._transport.execute(call, seconds_left(deadline), self._lease)

    def scheduler(
        self, *, execution: Execution = Execution.SERVER, on_notice: Callable[[Notice], object] | None = None
    ) -> Scheduler:
        """Makes a scheduler: engine steps over one stream; ``with`` opens and closes it.

        A session has one scheduler at a time.

        Args:
            execution: Who runs the copies of its steps.
            on_notice: Called with every notice, on a thread of the scheduler's; must not block.
        """
        from statepool.sync.scheduler import Scheduler

        return Scheduler(self._transport, self._lease, execution, on_notice)

    def step(
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
        """Applies one engine step without a stream, under a number of the caller's.

        Args:
            number: That of the session's last step plus 1; or of one of its last two steps, which is repeated then.
            execution: Who runs the copies.
            admit: As for `Scheduler.step`, like everything below.
            schedule: Forward passes to come.
            commit: Results of forward passes.
            finish: Ids of sequences to end.
            settled_step: Every step up to this one is settled; None: the one before.
            partial_admission: Whether to admit only as many as there are blocks for.
            timeout: Deadline in seconds.

        Raises:
            StepOutOfOrderError: Another number; and everything that `Scheduler.step` raises.
        """
        arguments: StepArguments = {
            "admit": admit,
            "schedule": schedule,
            "commit": commit,
            "finish": finish,
            "settled_step": settled_step,
            "partial_admission": partial_admission,
        }
        call = calls.sequences.step(self._ref, number, execution, arguments)
        return self._transport.execute(call, timeout, self._lease)

    def delete(self, *, timeout: float | None = None) -> int:
        """Ends the session; whatever comes of it, the handle is closed.

        Uncommitted blocks are free at once, or quarantined while an attached worker may still write them; committed
        ones stay findable.

        Returns:
            References that were dropped; 0 where it was sent again, since the answer was lost.
        """
        deadline = self._transport.deadline(timeout)
        try:
            self._transport.hold(self._lease, deadline)
        finally:
            self._transport.leases.give_back(self._lease)
        left = seconds_left(deadline)
        return self._transport.execute(calls.sessions.delete_session(self._ref), left)

    def close(self) -> None:
        """Ends the session as well as it can, within a second: an unreachable server ends the lease by itself.

        Closing twice, or after the session is lost, does nothing.
        """
        self._transport.release(self._lease)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
