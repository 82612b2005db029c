"""What the pool answers: frozen values, columns as numpy arrays."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from statepool.refs import BlockRefs
from statepool_server.recency import Ids


class Usage(NamedTuple):
    """Counts of a moment; free + evictable + held + releasing = capacity."""

    free: int
    """Blank blocks."""
    evictable: int
    """Committed blocks that nobody holds."""
    held: int
    """Blocks with a reference."""
    releasing: int
    """Blocks without a reference that are still read or written, or in quarantine."""
    committed: int
    """Blocks in the prefix index."""
    busy: int
    """Blocks that are read or written."""
    sessions: int
    """Live sessions."""
    sequences: int
    """Live sequences of all sessions."""
    quarantined: int
    """Blocks in quarantine, held or not."""


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A session as its owner sees it."""

    session_id: int
    """Its id."""
    epoch: int
    """Its epoch."""
    owner_key: str
    """Its owner key; empty: none."""
    ttl_ns: int
    """Its time to live, in nanoseconds."""
    expires_ns: int
    """When its lease ends, on the caller's clock."""
    block_count: int
    """Blocks that it holds."""
    tenant: str
    """On whose account it runs; empty: nobody's."""


@dataclass(frozen=True, slots=True)
class CommitResult:
    """What became of a commit."""

    holders: BlockRefs
    """Per row, the block that holds the hash now, ``[n]``."""
    duplicate_rows: NDArray[np.int64]
    """Rows whose hash another block held already."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A found prefix."""

    hash_index: int
    """Row of the hash."""
    block: BlockRefs
    """The block, one row, with a reference taken."""


@dataclass(frozen=True, slots=True)
class Eviction:
    """What became of an eviction."""

    unlisted: int
    """Blocks taken out of the index."""
    freed: int
    """How many of them are blank now."""


@dataclass(frozen=True, slots=True, eq=False)
class SequenceRows:
    """Sequences of a session; columns ``[n]``, entries ``[e]``."""

    sequence_ids: NDArray[np.int64]
    """Ids, ascending."""
    num_computed: NDArray[np.int64]
    """Tokens that each state has seen."""
    num_accepted: NDArray[np.int64]
    """Accepted tokens of the last commit that were not shifted away."""
    outstanding_tokens: NDArray[np.int64]
    """Tokens of the outstanding step, 0 where there is none."""
    outstanding_drafts: NDArray[np.int64]
    """Drafts among them."""
    scheduled_steps: NDArray[np.int64]
    """Last step that reads or writes blocks of each."""
    running_ends: NDArray[np.int64]
    """Running columns + 1, 0 where a sequence was never scheduled."""
    table_lengths: NDArray[np.int64]
    """Columns of each table, nulls included."""
    entry_offsets: NDArray[np.int64]
    """Start of each table's entries and the end of the last, ``[n + 1]``."""
    entry_columns: NDArray[np.int64]
    """Columns that are not null."""
    entries: BlockRefs
    """Their blocks."""
    namespaces: list[str]
    """Namespace of each."""
    last_step: int
    """Number of the session's last step."""
    settled_step: int
    """Every step up to this one is settled."""


@dataclass(frozen=True, slots=True, eq=False)
class Pin:
    """Blocks in use by copy threads; given back to `Pool.unpin` once."""

    readers: Ids
    """Blocks that are read, each once."""
    writers: Ids
    """Blocks that are written (and maybe read), each once."""


@dataclass(frozen=True, slots=True)
class BlockRows:
    """Blocks with all that is known of them; columns ``[n]``."""

    refs: BlockRefs
    """The blocks."""
    states: NDArray[np.int64]
    """`BlockState` of each."""
    reference_counts: NDArray[np.int64]
    """References of all sessions."""
    session_ids: NDArray[np.int64]
    """A session that holds the block, 0 where none does."""
    prefix_hashes: list[bytes]
    """Prefix hash, empty where there is none."""
