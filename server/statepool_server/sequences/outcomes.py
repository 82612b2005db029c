"""What an engine step answers, and the memory work that it leaves to be done."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from statepool.copies import CopyPlan
from statepool.refs import BlockRefs
from statepool_server.answers import Usage
from statepool_server.sequences.rules import NO_MOVES, Moves
from statepool_server.sequences.tables import NO_INTS, Ints
from statepool_server.work import MemoryWork


@dataclass(frozen=True, slots=True, eq=False)
class TableChanges:
    """Rows of the schedules whose running column or blocks changed."""

    rows: Ints
    """Row of the schedules, ``[n]``."""
    running_columns: Ints
    """Running column, ``[n]``."""
    blocks: BlockRefs
    """Blocks of the running column and the ``num_spec`` after it, row by row, ``[n * (1 + num_spec)]``."""


NO_CHANGES = TableChanges(NO_INTS, NO_INTS, BlockRefs(NO_INTS, NO_INTS))
"""No table changed."""


class StepOutcome(NamedTuple):
    """What became of a step; every step makes one, for which a frozen dataclass takes three times as long."""

    step: int
    """Its number."""
    digest: int
    """Digest of all decisions so far, 64 bits."""
    usage: Usage
    """Counts after it."""
    admitted_tokens: Ints = NO_INTS
    """Tokens that admitted sequences need not compute, ``[admitted]``."""
    admitted_blocks: Ints = NO_INTS
    """Block of the state after them, or `NULL`, ``[admitted]``."""
    tables: TableChanges = NO_CHANGES
    """Changed parts of tables."""
    post_copies: Moves = NO_MOVES
    """Copies of the commits."""
    zeroed_blocks: Ints = NO_INTS
    """Blocks to be zeroed."""
    pre_copies: Moves = NO_MOVES
    """Copies of the schedules."""
    published: int = 0
    """Blocks that became findable by the step itself."""
    work: MemoryWork | None = None
    """What the server has to do before it answers; None: nothing."""
    by_worker: bool = False
    """Whether copies and zeroing are the worker's."""

    @property
    def moves_states(self) -> bool:
        """Whether anything is copied or zeroed, by the server or by the worker."""
        return bool(len(self.post_copies.rows) or len(self.zeroed_blocks) or len(self.pre_copies.rows))


def copy_plan(moves: Moves) -> CopyPlan:
    """Writes copies between columns as copies between blocks."""
    return CopyPlan(moves.src_blocks, moves.dst_blocks, moves.token_biases, moves.temporal_blocks)


def sources(moves: Moves) -> Ints:
    """Lists the blocks that copies read, some of them more than once."""
    return np.concatenate((moves.src_blocks, moves.temporal_blocks))
