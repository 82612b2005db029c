"""The pool: every use case of blocks and sessions, in one place and in one order.

Deterministic: the same calls in the same order give the same answers, block ids included; time enters only as `now_ns`.
Every method checks everything before its first change, and none awaits, so a refused call has changed nothing and no
lock is needed on one event loop.
"""

from collections.abc import Collection, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from statepool.refs import BlockRefs
from statepool_server.answers import CommitResult, Eviction, Hit, Pin, SessionInfo
from statepool_server.attachments import EVERY, Attachment, Fence
from statepool_server.blocks import ONE
from statepool_server.changes import Changes, Listener
from statepool_server.events import NO_IDS, EventKind
from statepool_server.guards import Guards, check_boundaries, check_lengths
from statepool_server.holdings import counted
from statepool_server.recency import Ids
from statepool_server.sequences.applying import StepChanges
from statepool_server.sequences.context import StepContext
from statepool_server.sequences.lending import state_of
from statepool_server.sequences.outcomes import StepOutcome
from statepool_server.sequences.requests import StepRequest
from statepool_server.sequences.stepping import Stepping
from statepool_server.sequences.tables import NULL
from statepool_server.sessions import Session
from statepool_server.transfers import LendingTerms, LentStates, Transfer, TransferEnd
from statepool_server.view import PoolConfig, PoolState, PoolView, info_of
from statepool_server.work import MemoryWork, WorkEnd

__all__ = ["Pool", "PoolConfig"]


class Pool(PoolView):
    """State blocks and the sessions that hold them."""

    def __init__(self, config: PoolConfig, listener: Listener | None = None) -> None:
        """Builds a pool with every block blank.

        Args:
            config: Sizes.
            listener: Called with every change, in order; it must not call the pool.
        """
        super().__init__(config)
        self._block_tokens = config.block_tokens
        self._guards = Guards(self.blocks, self.holdings, self.prefixes)
        self._changes = Changes(self.blocks, self.holdings, self.prefixes, self.sessions, self.tally, listener)
        context = StepContext(
            self.blocks,
            self.prefixes,
            self.transfers,
            self._guards,
            config.block_tokens,
            config.num_spec,
            config.max_sequences,
        )
        self._step_changes = StepChanges(config.block_tokens, self.blocks, self.holdings, self._changes, self.tally)
        self._stepping = Stepping(context, self.sequences, self.holdings, self._step_changes)

    # As a whole

    def listen(self, listener: Listener, kinds: Collection[EventKind]) -> None:
        """Has a listener hear the changes of some kinds from now on, in order; it must not call the pool.

        Args:
            listener: Takes the place of whoever listened before.
            kinds: What it is told; all else costs nothing.
        """
        self._changes.listen(listener, kinds)

    def load(self, state: PoolState) -> None:
        """Takes a state over; the pool must be new and of the same size."""
        self.blocks.load(state.blocks)
        self.holdings.load(state.holdings)
        self.prefixes.load(state.prefixes)
        self.sessions.load(state.sessions)
        self.sequences.load(state.sequences, self._config.num_spec)
        self.attachments.load(state.attachments)
        self.transfers.load(state.transfers)

    def distrust(self, generations: Ids, last_session_id: int) -> Ids:
        """Gives up all that may have changed since: everything but committed blocks that were never free.

        No work may be under way.

        Args:
            generations: Generations that blocks were seen at, ``[block_count]``.
            last_session_id: Highest session id that may have been given out.

        Returns:
            The blocks that are still what they were; all others are blank, and no ref to them is good.
        """
        for attachment_id in list(self.attachments.live):
            self.detach(attachment_id)
        for session in list(self.sessions):
            self._close(session, expired=True)
        for transfer in list(self.transfers.live.values()):
            self._end_transfer(transfer, TransferEnd.CANCELLED)
        self.pardon()
        self.sessions.skip(last_session_id)
        changed = self.blocks.generations != generations
        changed[NULL] = False
        self._changes.unlist(np.flatnonzero(self.blocks.listed & changed))
        doubtful = np.flatnonzero(changed)
        self.blocks.outdate(doubtful, generations[doubtful])
        return np.flatnonzero(self.blocks.listed)

    # Sessions

    def create_session(
        self, owner_key: str, ttl_ns: int, take_over: bool, now_ns: int, tenant: str = ""
    ) -> tuple[SessionInfo, bool]:
        """Opens a session, or takes the one of the same tenant and owner key over with its blocks.

        Returns:
            The session, and whether it was taken over.

        Raises:
            OwnerKeyInUseError: A live session has the key and `take_over` is false.
            QuotaExceededError: As many sessions live as may.
        """
        session, taken_over = self.sessions.open(owner_key, ttl_ns, take_over, now_ns, tenant)
        self._changes.opened(session)
        if taken_over:
            self._fence(session, session.epoch - 1)
        return info_of(session), taken_over

    def keep_alive(self, session_id: int, epoch: int, now_ns: int) -> int:
        """Renews a lease.

        Returns:
            When it ends now.

        Raises:
            SessionFencedError, SessionExpiredError, SessionNotFoundError: The caller does not own a live session.
        """
        session = self.sessions.owned(session_id, epoch)
        self.sessions.renew(session, now_ns)
        return session.expires_ns

    def delete_session(self, session_id: int, epoch: int) -> int:
        """Ends a session; raises as `keep_alive`.

        Returns:
            References that were dropped.
        """
        return self._close(self.sessions.owned(session_id, epoch), expired=False)

    def expire_sessions(self, now_ns: int) -> list[int]:
        """Ends the sessions whose lease ended by `now_ns`, in the order of their ends.

        Returns:
            Their ids.
        """
        due = self.sessions.due(now_ns)
        for session in due:
            self._close(session, expired=True)
        return [session.session_id for session in due]

    def prolong_leases(self, until_ns: int) -> None:
        """Lets no lease end before a moment: nobody could renew one while there was no server."""
        self.sessions.prolong(until_ns)
        self.transfers.prolong(until_ns)

    # Blocks

    def allocate(self, session_id: int, epoch: int, count: int) -> BlockRefs:
        """Hands out blocks with one reference each: blank ones first, then the least recently used committed ones.

        Raises:
            PoolExhaustedError: Not so many are there.
            BadFieldError: A negative count.
            SessionFencedError, SessionExpiredError, SessionNotFoundError: As `keep_alive`.
        """
        session = self.sessions.owned(session_id, epoch)
        self.blocks.check_room(count)
        return self._changes.allocate(session, count)

    def free(self, session_id: int, epoch: int, refs: BlockRefs) -> None:
        """Drops one reference per row.

        Blocks without a reference are reused in the order of the rows: uncommitted ones at once (the first row first),
        committed ones after all that were released before.

        Raises:
            BlockNotOwnedError: The session holds fewer references than it gives back.
            BlockInSequenceError: It holds them only through its sequences.
            GenerationStaleError, BlockIndexOutOfRangeError: A bad ref.
            SessionFencedError, SessionExpiredError, SessionNotFoundError: As `keep_alive`.
        """
        session = self.sessions.owned(session_id, epoch)
        ids = self.blocks.check(refs, "blocks")
        counts = ONE
        if self.blocks.first_repeat(ids) >= 0:
            ids, counts = counted(ids)
        self._guards.owned(session, ids, "blocks", counts)
        self._guards.outside_sequences(session, ids, counts, self.sequences)
        self._changes.drop(session, ids, counts)

    def retain(self, session_id: int, epoch: int, refs: BlockRefs) -> None:
        """Takes one reference per row, to committed blocks or the session's own.

        Raises:
            BlockNotOwnedError: An uncommitted block of another session.
            GenerationStaleError, BlockIndexOutOfRangeError: A bad ref.
            SessionFencedError, SessionExpiredError, SessionNotFoundError: As `keep_alive`.
        """
        session = self.sessions.owned(session_id, epoch)
        ids = self.blocks.check(refs, "blocks")
        self._guards.readable(session, ids, "blocks")
        self._changes.retain(session, ids)

    def commit(
        self,
        session_id: int,
        epoch: int,
        refs: BlockRefs,
        namespace: str,
        prefix_hashes: Sequence[bytes],
        boundary_tokens: NDArray[np.int64],
        written_through_tokens: NDArray[np.int64],
    ) -> CommitResult:
        """Makes blocks immutable and lists their hashes.

        A block that holds the same hash already is left as it is. Where another block does, that one stays, and the
        row's block stays uncommitted.

        Raises:
            BadFieldError: A boundary that is no multiple of block_tokens, or a block named twice.
            BoundaryNotWrittenError: The tokens written through are not the boundary.
            BlockNotOwnedError, BlockNotWritableError, BlockBusyError: A block that is not the session's to commit.
            BlockInSequenceError: An uncommitted block that stands in a block table.
            ColumnLengthMismatchError: Columns of different lengths.
            GenerationStaleError, BlockIndexOutOfRangeError: A bad ref.
            SessionFencedError, SessionExpiredError, SessionNotFoundError: As `keep_alive`.
        """
        session = self.sessions.owned(session_id, epoch)
        ids = self.blocks.check(refs, "blocks")
        check_lengths(
            len(ids),
            prefix_hashes=prefix_hashes,
            boundary_tokens=boundary_tokens,
            written_through_tokens=written_through_tokens,
        )
        self.blocks.check_distinct(ids, "blocks")
        check_boundaries(self._block_tokens, boundary_tokens, written_through_tokens)
        self._guards.owned(session, ids, "blocks")
        self.blocks.check_idle(ids, "blocks", readers_too=False)
        self._guards.uncommitted_or_same(ids, namespace, prefix_hashes)
        self._guards.committable(ids)
        return self._changes.commit(session, refs, namespace, prefix_hashes)

    def lookup(self, session_id: int, epoch: int, namespace: str, prefix_hashes: Sequence[bytes]) -> Hit | None:
        """Finds the last hash that is known and takes a reference to its block.

        Raises:
            SessionFencedError, SessionExpiredError, SessionNotFoundError: As `keep_alive`.
        """
        session = self.sessions.owned(session_id, epoch)
        found = self.prefixes.deepest(namespace, prefix_hashes)
        self.tally.lookups += 1
        if found is None:
            return None
        self.tally.lookup_hits += 1
        row, block = found
        ids = np.array([block], np.int64)
        self._changes.retain(session, ids)
        return Hit(row, self.blocks.refs(ids))

    def evict(
        self, session_id: int, epoch: int, refs: BlockRefs, namespace: str, prefix_hashes: Sequence[bytes]
    ) -> Eviction:
        """Takes blocks out of the prefix index, by ref or by hash; unlisted blocks and unknown hashes are passed over.

        Raises:
            GenerationStaleError, BlockIndexOutOfRangeError: A bad ref.
            SessionFencedError, SessionExpiredError, SessionNotFoundError: As `keep_alive`.
        """
        self.sessions.owned(session_id, epoch)
        named = self.blocks.check(refs, "blocks")
        found = np.array(self.prefixes.find_all(namespace, prefix_hashes), np.int64)
        ids = np.unique(np.concatenate((named[self.blocks.listed[named]], found)))
        self.tally.unlisted_blocks += len(ids)
        return Eviction(len(ids), len(self._changes.unlist(ids)))

    # Sequences

    def step(self, session_id: int, epoch: int, request: StepRequest) -> StepOutcome:
        """Applies an engine step: settlement, commits, finishes, admissions, schedules, in this order.

        Where the outcome has work, the blocks of its copies are pinned until `finish_work`; the session's next
        step must wait for that.

        Raises:
            StepOutOfOrderError: Not the next step, or a sequence that is not where it must be.
            SequenceNotFoundError, SequenceExistsError: An id that is not, or is, in use.
            BoundaryNotWrittenError: A hash for a boundary at which no state stands.
            BadFieldError, ColumnLengthMismatchError: A value that cannot be.
            BlockNotOwnedError, BlockNotWritableError, BlockInSequenceError: A block that cannot be imported.
            BlockBusyError: A block that must be copied is in use.
            PoolExhaustedError: Not so many blocks are there.
            QuotaExceededError: Too many sequences.
            GenerationStaleError, BlockIndexOutOfRangeError: A bad ref.
            SessionFencedError, SessionExpiredError, SessionNotFoundError: As `keep_alive`.
        """
        return self._stepping.step(self.sessions.owned(session_id, epoch), request, self.usage)

    def finish_work(self, work: MemoryWork, *, succeeded: bool = True) -> WorkEnd:
        """Tells that work has ended: what was copied can be found, and its pin is taken back.

        Args:
            work: The work.
            succeeded: Whether it was done; else nothing of it can be found, the session loses what it has received, and
                its sequences those states that were to be written.
        """
        session, lost = self.sessions.find(work.session_id), list[int]()
        if session is not None and not succeeded:
            counts = self.holdings.count(session, work.received_blocks)
            held = counts > 0  # its owner may have found them in a listing, and dropped them
            self._changes.drop(session, work.received_blocks[held], counts[held])
            lost = self.sequences.of(work.session_id, self._config.num_spec).lose(work.written_blocks())
        return WorkEnd(self._step_changes.finish_work(session if succeeded else None, work), lost)

    # Transfers

    def lend_blocks(self, session_id: int, epoch: int, refs: BlockRefs, terms: LendingTerms) -> Transfer:
        """Lends committed blocks, or the session's own that stand in no block table.

        Raises:
            QuotaExceededError: As many transfers are open as may be.
            BlockNotOwnedError, BlockBusyError, BlockInSequenceError: A block that cannot be lent.
            ChecksumMismatchError: A condemned block.
            GenerationStaleError, BlockIndexOutOfRangeError: A bad ref.
            SessionFencedError, SessionExpiredError, SessionNotFoundError: As `keep_alive`.
        """
        session = self.sessions.owned(session_id, epoch)
        self._guards.committable(self.blocks.check(refs, "blocks"))
        return self._lend(session, LentStates.of_blocks(refs), "blocks", terms)

    def lend_sequence(self, session_id: int, epoch: int, sequence_id: int, terms: LendingTerms) -> Transfer:
        """Lends the state of a sequence, which cannot be scheduled before that has ended.

        Raises:
            SequenceNotFoundError: The session has no such sequence.
            StepOutOfOrderError: It has an outstanding or unsettled step, or no state yet.
            QuotaExceededError: As many transfers are open as may be.
            BlockBusyError: The state is being moved.
            SessionFencedError, SessionExpiredError, SessionNotFoundError: As `keep_alive`.
        """
        session = self.sessions.owned(session_id, epoch)
        table = self.sequences.of(session_id, self._config.num_spec)
        states = state_of(table, sequence_id, self.blocks, self._block_tokens)
        transfer = self._lend(session, states, "sequence_id", terms)
        table.steady_steps = 0  # the next step must look at what is lent
        return transfer

    def complete_transfer(self, transfer_id: int, token: bytes) -> None:
        """Ends a transfer whose reader has everything; again, it does nothing.

        Raises:
            TransferNotFoundError: It has ended in another way, or the token is another.
        """
        self._end_once(transfer_id, token, TransferEnd.COMPLETED)

    def cancel_transfer(self, transfer_id: int, token: bytes) -> None:
        """Ends a transfer that nobody wants any more; again, it does nothing.

        Raises:
            TransferNotFoundError: It has ended in another way, or the token is another.
        """
        self._end_once(transfer_id, token, TransferEnd.CANCELLED)

    def expire_transfers(self, now_ns: int) -> list[int]:
        """Ends the transfers whose time was over by `now_ns`.

        Returns:
            Their ids.
        """
        due = self.transfers.due(now_ns)
        for transfer in due:
            self._end_transfer(transfer, TransferEnd.EXPIRED)
        return [transfer.transfer_id for transfer in due]

    # Condemned blocks

    def condemn(self, refs: BlockRefs) -> BlockRefs:
        """Takes blocks out of use whose bytes are not those that were committed.

        They cannot be found, read or copied any more, and are not handed out again until `pardon`, whoever holds them.
        Refs that are stale, or of blocks that are not committed or condemned already, are passed over: what was read
        has become nobody's concern meanwhile.

        Returns:
            The blocks that were condemned by it, in the order of their ids.
        """
        blocks = self.blocks
        known = refs[(refs.block_ids >= 1) & (refs.block_ids < blocks.block_count)]
        ids = known.block_ids
        is_meant = (known.generations == blocks.generations[ids]) & blocks.committed[ids] & ~blocks.condemned[ids]
        condemned = np.unique(ids[is_meant])
        self._changes.condemn(condemned)
        return blocks.refs(condemned)

    def pardon(self) -> int:
        """Ends the quarantine of all condemned blocks; those that nobody holds become blank.

        Returns:
            Blocks that left quarantine.
        """
        return self._changes.pardon()

    # Attachments

    def attach(self, rank_index: int, read_only: bool) -> Attachment:
        """Notes that a process is about to map the arena of a rank.

        Raises:
            QuotaExceededError: As many as may are attached.
        """
        return self.attachments.open(rank_index, read_only)

    def detach(self, attachment_id: int) -> int:
        """Notes that a process can no longer read or write: it said so, or is dead.

        Returns:
            Blocks that left quarantine.

        Raises:
            AttachmentNotFoundError: There is no such attachment.
        """
        self.attachments.check(attachment_id)
        return self._lift(self.attachments.close(attachment_id))

    def quiesced(self, attachment_id: int, number: int) -> int:
        """Notes that a process neither writes for a fenced session any more nor will.

        Returns:
            Blocks that left quarantine.

        Raises:
            AttachmentNotFoundError: There is no such attachment.
            BadFieldError: There never was such a fence.
        """
        self.attachments.check(attachment_id)
        return self._lift(self.attachments.answered(attachment_id, number))

    def release_quarantine(self, attachment_id: int) -> int:
        """Waits no longer for what an attachment (`EVERY`: all of them) has not answered yet.

        Returns:
            Blocks that left quarantine.

        Raises:
            AttachmentNotFoundError: There is no such attachment.
        """
        if attachment_id != EVERY:
            self.attachments.check(attachment_id)
        return self._lift(self.attachments.acquit(attachment_id))

    # Pins

    def pin_read(self, session_id: int, epoch: int, refs: BlockRefs) -> Pin:
        """Keeps blocks from being reused or written while they are read.

        Raises:
            BlockNotOwnedError: Neither committed nor the session's.
            BlockBusyError: Being written.
            GenerationStaleError, BlockIndexOutOfRangeError: A bad ref.
            SessionFencedError, SessionExpiredError, SessionNotFoundError: As `keep_alive`.
        """
        session = self.sessions.owned(session_id, epoch)
        return self._changes.pin(self._guards.source(session, refs, "blocks"), NO_IDS)

    def pin_write(self, session_id: int, epoch: int, refs: BlockRefs) -> Pin:
        """Makes the caller the one writer of blocks.

        Raises:
            BadFieldError: A block named twice.
            BlockNotOwnedError, BlockNotWritableError, BlockBusyError: Not the session's to write now.
            GenerationStaleError, BlockIndexOutOfRangeError: A bad ref.
            SessionFencedError, SessionExpiredError, SessionNotFoundError: As `keep_alive`.
        """
        session = self.sessions.owned(session_id, epoch)
        return self._changes.pin(NO_IDS, self._guards.destination(session, refs, "blocks"))

    def pin_copy(self, session_id: int, epoch: int, src: BlockRefs, dst: BlockRefs, temporal_src: BlockRefs) -> Pin:
        """Pins the sources and destinations of copies; a block may be both.

        Raises:
            ColumnLengthMismatchError: Columns of different lengths.
            BadFieldError: A destination named twice.
            BlockNotOwnedError, BlockNotWritableError, BlockBusyError: A block that may not be read or written.
            GenerationStaleError, BlockIndexOutOfRangeError: A bad ref.
            SessionFencedError, SessionExpiredError, SessionNotFoundError: As `keep_alive`.
        """
        session = self.sessions.owned(session_id, epoch)
        check_lengths(len(dst), src=src, temporal_src=temporal_src)
        writers = self._guards.destination(session, dst, "dst")
        sources = self._guards.source(session, src, "src")
        if temporal_src is not src:
            sources = np.concatenate((sources, self._guards.source(session, temporal_src, "temporal_src")))
        return self._changes.pin(sources, writers)

    def unpin(self, pin: Pin) -> None:
        """Takes a pin back; blocks that lost their last reference meanwhile are released now."""
        self._changes.unpin(pin)

    def _lend(self, session: Session, states: LentStates, field: str, terms: LendingTerms) -> Transfer:
        self.transfers.check_room()
        sources = [self._guards.source(session, refs, field) for refs in (states.blocks, states.temporal_blocks)]
        pin = self._changes.pin(np.unique(np.concatenate(sources)), NO_IDS)
        return self.transfers.open(session, terms, states, pin)

    def _end_once(self, transfer_id: int, token: bytes, end: TransferEnd) -> None:
        if not self.transfers.has_ended(transfer_id, token, end):
            self._end_transfer(self.transfers.get(transfer_id, token), end)

    def _end_transfer(self, transfer: Transfer, end: TransferEnd) -> None:
        self.transfers.close(transfer, end)
        self._changes.unpin(transfer.pin)

    def _close(self, session: Session, *, expired: bool) -> int:
        self._fence(session, session.epoch)
        self._stepping.forget(session)
        return self._changes.close(session, expired=expired)

    def _fence(self, session: Session, epoch: int) -> None:
        """Puts what an owner could still have written through attached processes in quarantine."""
        if not self.attachments.writers():
            return
        ids = self.holdings.blocks_of(session)
        ids = ids[~self.blocks.committed[ids]]
        self.attachments.fence(session.session_id, epoch, ids)  # also without blocks: no pass may begin any more
        if len(ids):
            self._changes.quarantine(session, ids)

    def _lift(self, fences: Iterable[Fence]) -> int:
        return sum(self._changes.clear(fence.block_ids) for fence in fences)
