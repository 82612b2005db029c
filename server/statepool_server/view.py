"""What can be seen of a pool; nothing here changes it."""

import hashlib
import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from statepool.refs import BlockRefs
from statepool_server.answers import BlockRows, SequenceRows, SessionInfo, Usage
from statepool_server.attachments import AttachmentsState, AttachmentTable
from statepool_server.blocks import BlocksState, BlockState, BlockTable
from statepool_server.holdings import Holdings, HoldingsState
from statepool_server.prefix import PrefixesState, PrefixIndex
from statepool_server.recency import Ids
from statepool_server.sequences.admissions import searched
from statepool_server.sequences.requests import Admissions
from statepool_server.sequences.table import IDLE, SequencesState, SequenceTables
from statepool_server.sessions import Session, SessionsState, SessionTable, account_of
from statepool_server.tally import Tally
from statepool_server.transfers import Transfer, TransfersState, TransferTable

_SUMMED = struct.Struct("<8Q")


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
    num_spec: int = 0
    """Speculative tokens of align mode; below block_tokens."""
    max_sequences: int = 65536
    """Live sequences of all sessions."""
    max_attachments: int = 64
    """Attached processes at a time."""
    max_transfers: int = 1024
    """Open transfers."""
    last_session_id: int = 0
    """Highest session id that was given out before there was this pool."""


@dataclass(frozen=True, slots=True, eq=False)
class PoolState:
    """A pool at a moment."""

    blocks: BlocksState
    """The table of blocks."""
    holdings: HoldingsState
    """Who holds them."""
    prefixes: list[PrefixesState]
    """The prefix index."""
    sessions: SessionsState
    """The sessions."""
    sequences: dict[int, SequencesState]
    """Their sequences, by session id."""
    attachments: AttachmentsState
    """Attached processes and fences."""
    transfers: TransfersState
    """States that are lent."""


class PoolView:
    """State blocks and the sessions that hold them, to be looked at.

    Attributes:
        blocks: The table of blocks; to read, not to change.
        holdings: Who holds them; to read, not to change.
        prefixes: The prefix index; to read, not to change.
        sessions: The sessions; to read, not to change.
        sequences: Their sequences; to read, not to change.
        attachments: Attached processes and fences; to read, not to change.
        tally: What has been done; to read, not to change.
        transfers: States that are lent; to read, not to change.
    """

    def __init__(self, config: PoolConfig) -> None:
        """Builds a pool with every block blank.

        Args:
            config: Sizes.
        """
        self._config = config
        self.blocks = BlockTable(config.block_count)
        self.holdings = Holdings(config.block_count)
        self.prefixes = PrefixIndex(config.block_count)
        self.sessions = SessionTable(config.max_sessions, config.remembered_sessions, config.last_session_id)
        self.sequences = SequenceTables()
        self.attachments = AttachmentTable(config.max_attachments)
        self.tally = Tally()
        self.transfers = TransferTable(config.max_transfers, config.block_count)

    @property
    def capacity(self) -> int:
        """Blocks that can be allocated."""
        return self.blocks.capacity

    @property
    def next_expiry_ns(self) -> int | None:
        """When the next lease or transfer ends; None: there is none."""
        ends = (self.sessions.next_expiry_ns, self.transfers.next_expiry_ns)
        return min((end for end in ends if end is not None), default=None)

    def check_session(self, session_id: int, epoch: int) -> None:
        """Checks that the caller owns a live session.

        Raises:
            SessionFencedError, SessionExpiredError, SessionNotFoundError: The caller does not.
        """
        self.sessions.owned(session_id, epoch)

    def get_session(self, session_id: int) -> SessionInfo:
        """Returns a session.

        Raises:
            SessionExpiredError, SessionNotFoundError: There is none.
        """
        return info_of(self.sessions.get(session_id))

    def list_sessions(self, after_id: int, limit: int) -> list[SessionInfo]:
        """Lists sessions in the order of their ids."""
        return [info_of(session) for session in self.sessions.page(after_id, limit)]

    def usage(self) -> Usage:
        """Counts blocks and sessions, in constant time."""
        blocks = self.blocks
        free, evictable, held = blocks.free_count, len(blocks.evictable), blocks.held_count
        return Usage(
            free=free,
            evictable=evictable,
            held=held,
            releasing=blocks.capacity - free - evictable - held,
            committed=len(self.prefixes),
            busy=blocks.busy_count,
            sessions=len(self.sessions),
            sequences=self.sequences.count,
            quarantined=blocks.quarantined_count,
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

    def committed_by_others(self, session_id: int, refs: BlockRefs) -> Ids:
        """Finds the committed blocks, among those that refs name rightly, that a session does not hold."""
        ids: Ids = refs.block_ids
        exist = (ids > 0) & (ids < self.blocks.block_count)
        ids, generations = ids[exist], refs.generations[exist]
        ids = ids[(self.blocks.generations[ids] == generations) & self.blocks.committed[ids]]
        session = self.sessions.find(session_id)
        if session is not None:
            ids = ids[self.holdings.count(session, ids) == 0]
        return ids

    def check_transfer(self, transfer_id: int, token: bytes) -> Transfer:
        """Checks that what a transfer lends can be read, or has been read whole if it was read already.

        Returns:
            The transfer.

        Raises:
            TransferNotFoundError: It has ended, or the token is another.
            BlockBusyError, ChecksumMismatchError: A block is in quarantine, or condemned.
            GenerationStaleError: A block is not what it was.
        """
        transfer = self.transfers.get(transfer_id, token)
        for refs in (transfer.states.blocks, transfer.states.temporal_blocks):
            self.blocks.check_clear(self.blocks.check(refs, "transfer"), "transfer")
        return transfer

    def foreign(self, session_id: int, refs: BlockRefs) -> BlockRefs:
        """Selects a session's new blocks whose bytes may be another's, and that its tenant must not see as they are."""
        return self.blocks.refs(self.holdings.foreign(self.sessions.get(session_id), refs.block_ids))

    def held_by(self, tenant: str) -> int:
        """Counts the blocks on a tenant's account: those of its sessions, each once a session, and those it lends.

        What is lent counts beside as far as no session of the tenant holds it any more, and so do blocks that sessions
        of the tenant have lost and that attached processes may still write.
        """
        sessions = [session for session in self.sessions if session.tenant == tenant]
        beside = self.transfers.lent_by(tenant)
        if self.blocks.quarantined_count > self.blocks.condemned_count:
            fenced = np.flatnonzero(self.blocks.fences > self.blocks.condemned)
            beside = np.union1d(beside, self.holdings.last_held_by(account_of(tenant), fenced))
        for session in sessions if len(beside) else ():
            beside = beside[self.holdings.count(session, beside) == 0]
        return sum(session.block_count for session in sessions) + len(beside)

    def found(self, namespace: str, prefix_hashes: Sequence[bytes]) -> Ids:
        """Finds the block that `Pool.lookup` would hand out now, if there is one, ``[0 or 1]``."""
        found = self.prefixes.deepest(namespace, prefix_hashes)
        return np.array([] if found is None else [found[1]], np.int64)

    def hits(self, admissions: Admissions) -> Ids:
        """Finds the blocks that `Pool.step` would begin sequences with now, but for those that the step publishes."""
        rows = searched(admissions, self._config.block_tokens)
        found = [self.prefixes.deepest(namespace, prefix_hashes) for namespace, prefix_hashes in rows]
        return np.array([hit[1] for hit in found if hit is not None], np.int64)

    def last_steps(self, session_id: int) -> tuple[int, int]:
        """Tells the numbers of a session's last step and of the last that was confirmed as settled; 0: none."""
        table = self.sequences.of(session_id, self._config.num_spec)
        return table.last_step, table.settled_step

    def list_sequences(self, session_id: int, from_id: int, limit: int) -> SequenceRows:
        """Lists sequences of a session by id.

        Args:
            session_id: The session.
            from_id: Only sequences from it on.
            limit: Most rows.

        Raises:
            SessionExpiredError, SessionNotFoundError: No such session.
        """
        session = self.sessions.get(session_id)
        table = self.sequences.of(session.session_id, self._config.num_spec)
        table.catch_up()
        slots = table.in_order()
        slots = slots[table.ids[slots] >= from_id][:limit]
        rows, columns, blocks = table.tables.take(slots).entries()
        drafts, idle = table.drafts[slots], table.drafts[slots] == IDLE
        outstanding = table.written[slots] + drafts - table.num_computed[slots]
        return SequenceRows(
            sequence_ids=table.ids[slots],
            num_computed=table.num_computed[slots],
            num_accepted=table.num_accepted[slots],
            outstanding_tokens=np.where(idle, 0, outstanding),
            outstanding_drafts=np.where(idle, 0, drafts),
            scheduled_steps=table.unsettled_step[slots],
            running_ends=table.running_column(slots, self._config.block_tokens) + 1,
            table_lengths=table.tables.take(slots).lengths(),
            entry_offsets=np.searchsorted(rows, np.arange(len(slots) + 1)),
            entry_columns=columns,
            entries=self.blocks.refs(blocks),
            namespaces=[table.namespaces[slot] for slot in slots.tolist()],
            last_step=table.last_step,
            settled_step=table.settled_step,
        )

    def dump(self) -> PoolState:
        """Shows everything, mostly without copying it: to be written down before the next change."""
        return PoolState(
            self.blocks.dump(),
            self.holdings.dump(),
            self.prefixes.dump(),
            self.sessions.dump(),
            self.sequences.dump(),
            self.attachments.dump(),
            self.transfers.dump(),
        )

    def sums(self) -> int:
        """Sums the counts up to 32 bits, in constant time: pools that have decided differently rarely agree in it."""
        blocks, sessions = self.blocks, self.sessions
        counts = (blocks.free_count, len(blocks.evictable), blocks.held_count, blocks.busy_count)
        others = (blocks.quarantined_count, sessions.last_id, len(sessions), self.sequences.count)
        return xxhash.xxh32_intdigest(_SUMMED.pack(*counts, *others))

    def digest(self) -> bytes:
        """Digests everything that decides the pool's answers: two pools with one digest behave alike.

        Takes time in proportion to the pool.
        """
        blocks, digest = self.blocks, hashlib.blake2b(digest_size=16)
        for column in (
            blocks.generations,
            blocks.references,
            blocks.committed,
            blocks.busy,
            blocks.fences,
            blocks.condemned,
            self.holdings.holder,
            self.holdings.held,
            self.holdings.in_sequences,
            blocks.free(),
            blocks.evictable.block_ids(),
        ):
            digest.update(column.tobytes())
        tables = (self.sessions, self.sequences, self.attachments, self.transfers)
        digest.update(repr([table.facts() for table in tables]).encode())
        for name in self.prefixes.items():
            digest.update(repr(name).encode())
        return digest.digest()


def info_of(session: Session) -> SessionInfo:
    """Shows a session as its owner sees it."""
    return SessionInfo(
        session.session_id,
        session.epoch,
        session.owner_key,
        session.ttl_ns,
        session.expires_ns,
        session.block_count,
        session.tenant,
    )
