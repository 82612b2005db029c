"""What a scheduler says in an engine step, and what a server tells it unasked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from statepool.descriptions import PoolUsage
    from statepool.refs import BlockRefs


class Execution(IntEnum):
    """Who runs the copies of a step; the numbers are those of the wire."""

    SERVER = 1
    """The server, before it answers. The worker has finished the step before, and starts the next after the answer."""
    WORKER = 2
    """The attached worker, in its own stream in front of the forward pass: post-copies, then zeroing and pre-copies."""


class AllRunning(Enum):
    """Type of `ALL_RUNNING`."""

    ALL_RUNNING = "all_running"

    def __repr__(self) -> str:
        return self.name


ALL_RUNNING: Final = AllRunning.ALL_RUNNING
"""Names the session's running list: the sequences of the last explicit `Schedules.sequence_ids` that have not been
finished since, in that order."""

SequenceIds: TypeAlias = "ArrayLike | AllRunning"
"""Ids, ``[n]``, or the running list."""


@dataclass(frozen=True, slots=True)
class ImportedState:
    """A state with which a sequence begins, in a block that was filled from elsewhere."""

    block: BlockRefs
    """The block, a column of one: the session's, uncommitted, with one reference, which passes to the sequence."""
    num_tokens: int
    """Tokens that the state has seen, from 1."""


@dataclass(frozen=True, slots=True)
class Admission:
    """A sequence to begin."""

    sequence_id: int
    """An id of the caller's choice, below 2**63, not in use in the session."""
    prompt_tokens: int
    """Tokens known at admission; a hit leaves at least one of them to compute."""
    prefix_hashes: Sequence[bytes] = ()
    """Hashes of its full blocks, from the shortest prefix to the longest, as `prefix_hashes` makes them; the server
    looks for the longest that it has."""
    max_hit_tokens: int | None = None
    """Most tokens that a hit may cover, for example because the attention cache reaches less far; None: no bound."""
    namespace: str = ""
    """Where the hashes are; keeps models and tenants apart."""
    imported: ImportedState | None = None
    """State to begin with; then there are no hashes."""


@dataclass(frozen=True, slots=True, eq=False)
class Commits:
    """Results of forward passes: columns, one row per sequence."""

    sequence_ids: SequenceIds
    """Sequences with an outstanding step, ``[n]``; or `ALL_RUNNING`."""
    accepted_tokens: ArrayLike = 1
    """Tokens accepted, from 1 (none of the drafts) to 1 + the drafts, ``[n]``; a single number applies to every row."""
    hash_rows: ArrayLike = ()
    """Rows that reach a boundary and have a prefix hash for it, ascending, ``[h]``."""
    boundary_tokens: ArrayLike = ()
    """Boundary that each such row has reached: the last multiple of block_tokens up to the tokens computed, at which a
    state must stand exactly, ``[h]``."""
    prefix_hashes: Sequence[bytes] = ()
    """Prefix hash of each such row, 1 to 64 bytes, ``[h]``."""


@dataclass(frozen=True, slots=True, eq=False)
class Schedules:
    """Forward passes to come: columns, one row per sequence."""

    sequence_ids: SequenceIds
    """Sequences without an outstanding step, ``[n]``; or `ALL_RUNNING`, as it is after the finishes of the step."""
    num_tokens: ArrayLike = 1
    """Tokens of the pass, drafts included, from 1, ``[n]``; a single number applies to every row."""
    num_draft_tokens: ArrayLike = 0
    """Drafted tokens among them: none, or all but one; at most ``Pool.num_spec``, ``[n]``; a single number applies to
    every row."""


class NoticeKind(IntEnum):
    """What a notice tells; the numbers are those of the wire."""

    PRESSURE = 1
    """Fewer blocks are free and evictable than the server's threshold: preempt or admit less."""
    RELIEF = 2
    """There are enough blocks again."""
    GOING_AWAY = 3
    """The server is going to stop: admissions are refused (`DrainingError`), other steps are taken while it drains."""


@dataclass(frozen=True, slots=True)
class Notice:
    """News that a server sends unasked."""

    kind: NoticeKind
    """What happened."""
    usage: PoolUsage
    """Blocks and sessions at that moment."""
