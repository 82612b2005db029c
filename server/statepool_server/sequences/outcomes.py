"""What an engine step answers, and the memory work that it leaves to be done."""

from dataclasses import dataclass

import numpy as np

from statepool.copies import CopyPlan
from statepool.refs import BlockRefs
from statepool_server.answers import Pin, Usage
from statepool_server.sequences.rules import Moves
from statepool_server.sequences.tables import Ints
from statepool_server.sequences.unsettled import Publication


@dataclass(frozen=True, slots=True, eq=False)
class TableChanges:
    """Rows of the schedules whose running column or blocks changed."""

    rows: Ints
    """Row of the schedules, ``[n]``."""
    running_columns: Ints
    """Running column, ``[n]``."""
    blocks: BlockRefs
    """Blocks of the running column and the ``num_spec`` after it, row by row, ``[n * (1 + num_spec)]``."""


@dataclass(frozen=True, slots=True, eq=False)
class StepWork:
    """Memory work of a step that the server does itself; its blocks are pinned until `Pool.finish_step_work`."""

    session_id: int
    """Session of the step."""
    post_copies: CopyPlan
    """Done first."""
    zeroed_blocks: Ints
    """Zeroed when the post-copies are done."""
    pre_copies: CopyPlan
    """Done when the post-copies are done."""
    pin: Pin
    """The blocks."""
    publication: Publication
    """States that are to be found when the work is done."""


@dataclass(frozen=True, slots=True, eq=False)
class StepOutcome:
    """What became of a step."""

    step: int
    """Its number."""
    digest: int
    """Digest of all decisions so far, 64 bits."""
    admitted_tokens: Ints
    """Tokens that admitted sequences need not compute, ``[admitted]``."""
    admitted_blocks: Ints
    """Block of the state after them, or `NULL`, ``[admitted]``."""
    tables: TableChanges
    """Changed parts of tables."""
    post_copies: Moves
    """Copies of the commits."""
    zeroed_blocks: Ints
    """Blocks to be zeroed."""
    pre_copies: Moves
    """Copies of the schedules."""
    published: int
    """Blocks that became findable by the step itself."""
    usage: Usage
    """Counts after it."""
    work: StepWork | None
    """What the server has to do before it answers; None: nothing."""


def copy_plan(moves: Moves) -> CopyPlan:
    """Writes copies between columns as copies between blocks."""
    return CopyPlan(moves.src_blocks, moves.dst_blocks, moves.token_biases, moves.temporal_blocks)


def sources(moves: Moves) -> Ints:
    """Lists the blocks that copies read, some of them more than once."""
    return np.concatenate((moves.src_blocks, moves.temporal_blocks))
