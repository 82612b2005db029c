"""What calls about blocks return."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from statepool.refs import BlockRefs


class BlockState(IntEnum):
    """What a block is at a moment; the numbers are those of the wire."""

    FREE = 1
    """Without content."""
    OWNED = 2
    """Held by one session, which may write it."""
    SHARED = 3
    """Committed, immutable, held by at least one session."""
    EVICTABLE = 4
    """Committed and held by nobody: reused when blocks run out."""
    RELEASING = 5
    """Held by nobody, but a copy, read or write of it is still running."""
    QUARANTINED = 6
    """Its owner is lost, and an attached process may still write it: neither free nor usable."""


_STATE_NAMES = {state.value: state.name for state in BlockState}


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class BlockPage:
    """A page of `list_blocks`: columns of one row per block, in the order of block ids."""

    blocks: BlockRefs
    """The blocks."""
    states: NDArray[np.int64]
    """`BlockState` of each, ``[n]``."""
    reference_counts: NDArray[np.int64]
    """References to each, ``[n]``."""
    session_ids: NDArray[np.uint64]
    """A session that holds the block, 0 where there is none, ``[n]``."""
    prefix_hashes: tuple[bytes, ...]
    """Prefix hash of each committed block, empty for others, ``[n]``."""

    def __len__(self) -> int:
        return len(self.blocks)

    def __repr__(self) -> str:
        states, counts = np.unique(self.states, return_counts=True)
        facts = ", ".join(
            f"{count} {_STATE_NAMES.get(state, state)}"
            for state, count in zip(states.tolist(), counts.tolist(), strict=True)
        )
        return f"<BlockPage [{len(self)}] {facts}>"


@dataclass(frozen=True, slots=True)
class Hit:
    """The deepest prefix that `lookup_prefix` found; the session holds a new reference to its block."""

    hash_index: int
    """Index of the hash that was found in the list that was asked for."""
    prefix_hash: bytes
    """That hash."""
    block: BlockRefs
    """The block, a column of one."""

    def __repr__(self) -> str:
        return f"<Hit {self.hash_index} {self.prefix_hash.hex()} {self.block!r}>"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Commit:
    """What `commit_blocks` did."""

    holders: BlockRefs
    """Per row, the block that holds the hash now, ``[n]``."""
    duplicate_rows: NDArray[np.int64]
    """Rows whose hash another block held already: `holders` names it, no reference to it was taken, and the row's own
    block stays uncommitted and owned."""

    def __repr__(self) -> str:
        return f"<Commit [{len(self.holders)}] {len(self.duplicate_rows)} duplicates, holders {self.holders!r}>"


@dataclass(frozen=True, slots=True)
class Eviction:
    """What `evict_blocks` did."""

    unlisted_blocks: int
    """Blocks taken out of the prefix index."""
    freed_blocks: int
    """How many of them became free; the others follow when their last reference goes."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class CopySpecs:
    """Where the state of the last accepted token begins, and how many elements it has.

    Columns ``[requests, tensors]``, the tensors in the order of ``pool.layout.tensors``.
    """

    start_addrs: NDArray[np.int64]
    """Addresses in the server's process; without a meaning elsewhere."""
    arena_offsets: NDArray[np.int64]
    """Bytes from the start of the rank's arena, the same in every process that maps it."""
    num_elements: NDArray[np.int64]
    """Elements of the state's dtype."""

    def __len__(self) -> int:
        return len(self.arena_offsets)

    def __repr__(self) -> str:
        requests, tensors = self.arena_offsets.shape
        return f"<CopySpecs [{requests} requests, {tensors} tensors] {int(self.num_elements.sum()):,} elements>"


@dataclass(frozen=True, slots=True, repr=False)
class Chunk:
    """Some bytes of a block image, as `read_blocks` yields them, already checked against their checksum."""

    block_index: int
    """Row of the blocks that were asked for."""
    offset: int
    """First byte in the image."""
    data: bytes
    """The bytes."""

    def __repr__(self) -> str:
        return f"<Chunk block_index {self.block_index}, {len(self.data):,} bytes at {self.offset:,}>"


@dataclass(frozen=True, slots=True)
class IntegrityReport:
    """Whether committed blocks hold the bytes that were committed."""

    verified_blocks: int
    """Blocks that were compared with their checksums, on every rank."""
    unverified_blocks: int
    """Committed blocks without a checksum: they were committed a moment ago."""
    condemned: BlockRefs
    """Blocks that were found changed by this call."""
    condemned_blocks: int
    """All blocks that were found changed and not released since."""
