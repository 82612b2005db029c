"""The pool: every use case of blocks and sessions, in one place and in one order.

Deterministic: the same calls in the same order give the same answers, block ids included; time enters only as `now_ns`.
Every method checks everything before its first change, and none awaits, so a refused call has changed nothing and no
lock is needed on one event loop.
"""

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from statepool.refs import BlockRefs
from statepool_server.answers import BlockRows, CommitResult, Eviction, Hit, Pin, SessionInfo, Usage
from statepool_server.blocks import BlockState, BlockTable, Ids
from statepool_server.events import Event, EventKind
from statepool_server.guards import Guards, check_boundaries, check_lengths
from statepool_server.holdings import Holdings
from statepool_server.prefix import PrefixIndex
from statepool_server.sessions import Session, SessionTable

_NO_IDS: Ids = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """Sizes of a pool."""

    block_count: int
    """Blocks, the null block included."""
    block_tokens: int
    """Tokens per align-mode block."""
    max_sessions: int = 1024
    """Live sessions at a time."""
    remembered_sessions: int = 4096
    """Expired sessions that are told apart from unknown ones."""


class Pool:
    """State blocks and the sessions that hold them.

    Attributes:
        blocks: The table of blocks; to read, not to change.
        holdings: Who holds them; to read, not to change.
        prefixes: The prefix index; to read, not to change.
        sessions: The sessions; to read, not to change.
    """

    def __init__(self, config: PoolConfig, listener: Callable[[Event], None] | None = None) -> None:
        """Builds a pool with every block blank.

        Args:
            config: Sizes.
            listener: Called with every change, in order; it must not call the pool.
        """
        self._config = config
        self.blocks = BlockTable(config.block_count)
        self.holdings = Holdings(config.block_count)
        self.prefixes = PrefixIndex(config.block_count)
        self.sessions = SessionTable(config.max_sessions, config.remembered_sessions)
        self._guards = Guards(self.blocks, self.holdings, self.prefixes)
        self._listener = listener

    # Sessions

    def create_session(self, owner_key: str, ttl_ns: int, take_over: bool, now_ns: int) -> tuple[SessionInfo, bool]:
        """Opens a session, or takes the one of the same owner key over with its blocks.

        Returns:
            The session, and whether it was taken over.

        Raises:
            OwnerKeyInUseError: A live session has the key and `take_over` is false.
            QuotaExceededError: As many sessions live as may.
        """
        session, taken_over = self.sessions.open(owner_key, ttl_ns, take_over, now_ns)
        self._tell(EventKind.SESSION_OPENED, session, _NO_IDS)
        return self._info(session), taken_over

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

    def check_session(self, session_id: int, epoch: int) -> None:
        """Checks that the caller owns a live session; raises as `keep_alive`."""
        self.sessions.owned(session_id, epoch)

    def get_session(self, session_id: int) -> SessionInfo:
        """Returns a session.

        Raises:
            SessionExpiredError, SessionNotFoundError: There is none.
        """
        return self._info(self.sessions.get(session_id))

    def list_sessions(self, after_id: int, limit: int) -> list[SessionInfo]:
        """Lists sessions in the order of their ids."""
        return [self._info(session) for session in self.sessions.page(after_id, limit)]

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

    @property
    def next_expiry_ns(self) -> int | None:
        """When the next lease ends; None: there is none."""
        return self.sessions.next_expiry_ns

    # Blocks

    @property
    def capacity(self) -> int:
        """Blocks that can be allocated."""
        return self.blocks.capacity

    def allocate(self, session_id: int, epoch: int, count: int) -> BlockRefs:
        """Hands out blocks with one reference each: blank ones first, then the least recently used committed ones.

        Raises:
            PoolExhaustedError: Not so many are there.
            SessionFencedError, SessionExpiredError, SessionNotFoundError: As `keep_alive`.
        """
        session = self.sessions.owned(session_id, epoch)
        blocks = self.blocks
        blocks.check_room(count)
        if count > blocks.free_count:
            self._unlist(blocks.pop_least_recent(count - blocks.free_count))
        ids = blocks.take(count)
        self.holdings.give(session, ids)
        self._tell(EventKind.ALLOCATED, session, ids)
        return blocks.refs(ids)

    def free(self, session_id: int, epoch: int, refs: BlockRefs) -> None:
        """Drops one reference per row.

        Blocks without a reference are reused in the order of the rows: uncommitted ones at once (the first row first),
        committed ones after all that were released before.

        Raises:
            BlockNotOwnedError: The session holds fewer references than it gives back.
            GenerationStaleError, BlockIndexOutOfRangeError: A bad ref.
            SessionFencedError, SessionExpiredError, SessionNotFoundError: As `keep_alive`.
        """
        session = self.sessions.owned(session_id, epoch)
        ids = self.blocks.check(refs, "blocks")
        counts = np.ones(len(ids), np.int64)
        if self.blocks.has_duplicates(ids):
            _, first, counts = np.unique(ids, return_index=True, return_counts=True)
            order = np.argsort(first)
            ids, counts = ids[first[order]], counts[order]
        self._guards.owned(session, ids, "blocks", counts)
        self._drop(session, ids, counts)

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
        self._retain(session, ids)

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
        check_boundaries(self._config.block_tokens, boundary_tokens, written_through_tokens)
        self._guards.owned(session, ids, "blocks")
        self.blocks.check_idle(ids, "blocks", readers_too=False)
        self._guards.uncommitted_or_same(ids, namespace, prefix_hashes)
        return self._commit(session, ids, namespace, prefix_hashes)

    def lookup(self, session_id: int, epoch: int, namespace: str, prefix_hashes: Sequence[bytes]) -> Hit | None:
        """Finds the last hash that is known and takes a reference to its block.

        Raises:
            SessionFencedError, SessionExpiredError, SessionNotFoundError: As `keep_alive`.
        """
        session = self.sessions.owned(session_id, epoch)
        found = self.prefixes.deepest(namespace, prefix_hashes)
        if found is None:
            return None
        row, block = found
        ids = np.array([block], np.int64)
        self._retain(session, ids)
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
        self.blocks.unlog(ids)
        return Eviction(len(ids), len(self._unlist(ids)))

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
        return self._pin(self._guards.source(session, refs, "blocks"), _NO_IDS)

    def pin_write(self, session_id: int, epoch: int, refs: BlockRefs) -> Pin:
        """Makes the caller the one writer of blocks.

        Raises:
            BadFieldError: A block named twice.
            BlockNotOwnedError, BlockNotWritableError, BlockBusyError: Not the session's to write now.
            GenerationStaleError, BlockIndexOutOfRangeError: A bad ref.
            SessionFencedError, SessionExpiredError, SessionNotFoundError: As `keep_alive`.
        """
        session = self.sessions.owned(session_id, epoch)
        return self._pin(_NO_IDS, self._guards.destination(session, refs, "blocks"))

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
        return self._pin(sources, writers)

    def unpin(self, pin: Pin) -> None:
        """Takes a pin back; blocks that lost their last reference meanwhile are released now."""
        self._tell_freed(self.blocks.unpin(pin.readers, pin.writers))

    # What is there

    def usage(self) -> Usage:
        """Counts blocks and sessions."""
        blocks = self.blocks
        held = int((blocks.references > 0).sum())
        free, evictable = blocks.free_count, blocks.evictable_count
        return Usage(
            free=free,
            evictable=evictable,
            held=held,
            releasing=self.capacity - free - evictable - held,
            committed=len(self.prefixes),
            busy=int((blocks.busy != 0).sum()),
            sessions=len(self.sessions),
        )

    def list_blocks(self, after_id: int, limit: int, states: Collection[BlockState], session_id: int = 0) -> BlockRows:
        """Lists blocks by id.

        Args:
            after_id: Only blocks above it.
            limit: Most rows.
            states: Only blocks in one of these states.
            session_id: Only blocks that this session holds; 0: any.

        Raises:
            SessionExpiredError, SessionNotFoundError: No such session.
        """
        if session_id:
            ids = self.holdings.blocks_of(self.sessions.get(session_id))
        else:
            ids = np.arange(1, self.blocks.block_count, dtype=np.int64)
        ids = ids[ids > after_id]
        ids = ids[np.isin(self.blocks.states(ids), [int(state) for state in states])][:limit]
        names = (self.prefixes.name_of(block) for block in ids.tolist())
        return BlockRows(
            refs=self.blocks.refs(ids),
            states=self.blocks.states(ids),
            reference_counts=self.blocks.references[ids],
            session_ids=self.holdings.some_holder(ids, self.sessions),
            prefix_hashes=[name[1] if name else b"" for name in names],
        )

    def digest(self) -> bytes:
        """Digests everything that decides the pool's answers: two pools with one digest behave alike."""
        blocks, digest = self.blocks, hashlib.blake2b(digest_size=16)
        for column in (
            blocks.generations,
            blocks.references,
            blocks.committed,
            blocks.busy,
            self.holdings.holder,
            self.holdings.held,
            blocks.free(),
            blocks.evictable(),
        ):
            digest.update(column.tobytes())
        for session in self.sessions:
            shared = sorted(session.shared.items())
            facts = (session.session_id, session.owner_key, session.epoch, session.ttl_ns, session.expires_ns, shared)
            digest.update(repr(facts).encode())
        for name in self.prefixes.items():
            digest.update(repr(name).encode())
        return digest.digest()

    # Steps that several use cases share

    def _close(self, session: Session, *, expired: bool) -> int:
        ids = self.holdings.blocks_of(session)
        counts = self.holdings.count(session, ids)
        self.sessions.close(session, expired=expired)
        self._drop(session, ids, counts)
        self._tell(EventKind.SESSION_CLOSED, session, _NO_IDS)
        return int(counts.sum())

    def _drop(self, session: Session, ids: Ids, counts: NDArray[np.int64]) -> None:
        self.holdings.drop(session, ids, counts)
        self.blocks.references[ids] -= counts
        if self._listener is not None:
            self._tell(EventKind.RELEASED, session, np.repeat(ids, counts))
        self._tell_freed(self.blocks.settle(ids))

    def _retain(self, session: Session, ids: Ids) -> None:
        self.blocks.unlog(ids)
        self.holdings.add(session, ids)
        np.add.at(self.blocks.references, ids, 1)
        self._tell(EventKind.RETAINED, session, ids)

    def _commit(self, session: Session, ids: Ids, namespace: str, prefix_hashes: Sequence[bytes]) -> CommitResult:
        blocks = self.blocks
        holders = self.prefixes.insert(namespace, prefix_hashes, ids)
        own = holders == ids
        mine = ids[own]
        if self._listener is not None:
            fresh = own & ~blocks.listed[ids]
            values = tuple(prefix_hashes[row] for row in fresh.nonzero()[0].tolist())
            self._tell(EventKind.COMMITTED, session, ids[fresh], namespace, values)
        blocks.committed[mine] = True
        blocks.listed[mine] = True
        return CommitResult(blocks.refs(holders), (~own).nonzero()[0])

    def _unlist(self, ids: Ids) -> Ids:
        """Takes listed blocks, which are not in the log, out of the index; returns those that became blank."""
        self.prefixes.remove(ids)
        self.blocks.listed[ids] = False
        self._tell(EventKind.UNLISTED, None, ids)
        freed = self.blocks.settle(ids)
        self._tell_freed(freed)
        return freed

    def _pin(self, sources: Ids, writers: Ids) -> Pin:
        readers = np.setdiff1d(sources, writers) if len(sources) else sources
        self.blocks.pin(readers, writers)
        return Pin(readers, writers)

    # Answers and events

    def _info(self, session: Session) -> SessionInfo:
        return SessionInfo(
            session.session_id,
            session.epoch,
            session.owner_key,
            session.ttl_ns,
            session.expires_ns,
            len(self.holdings.blocks_of(session)),
        )

    def _tell_freed(self, ids: Ids) -> None:
        if len(ids):
            self._tell(EventKind.FREED, None, ids)

    def _tell(
        self,
        kind: EventKind,
        session: Session | None,
        ids: Ids,
        namespace: str = "",
        prefix_hashes: tuple[bytes, ...] = (),
    ) -> None:
        if self._listener is not None:
            session_id, epoch = (session.session_id, session.epoch) if session else (0, 0)
            generations = self.blocks.generations[ids]
            self._listener(Event(kind, session_id, epoch, ids.copy(), generations, namespace, prefix_hashes))
