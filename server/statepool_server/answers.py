"""What the pool answers: frozen values, columns as numpy arrays."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from statepool.refs import BlockRefs
from statepool_server.recency import Ids


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts of a moment; free + evictable + held + releasing = capacity."""

    free: int
    """Blank blocks."""
    evictable: int
    """Committed blocks that nobody holds."""
    held: int
    """Blocks with a reference."""
    releasing: int
    """Blocks without a reference that are still read or written."""
    committed: int
    """Blocks in the prefix index."""
    busy: int
    """Blocks that are read or written."""
    sessions: int
    """Live sessions."""
    sequences: int
    """Live sequences of all sessions."""


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
