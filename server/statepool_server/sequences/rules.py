"""The rules of align mode on columns: which block a state is copied to, and how a table grows. No pool, no changes.

The semantics are those of vLLM's align mode (`mamba_utils`, `MambaManager`), with commits after the forward pass.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from statepool_server.sequences.tables import NEW, NO_COLUMN, NO_INTS, NULL, Ints, Tables


@dataclass(frozen=True, slots=True, eq=False)
class Moves:
    """Copies of states between columns; columns ``[n]``.

    Conv rows ``[bias:]`` of the source column go to the destination column; the temporal state comes from the column
    ``bias`` further on. The same column and a bias is a shift in place.
    """

    rows: Ints
    """Row of the batch."""
    src_columns: Ints
    """Column to copy from."""
    dst_columns: Ints
    """Column to copy to."""
    token_biases: Ints
    """Rows to shift conv states by."""
    src_blocks: Ints
    """Block of the source column."""
    temporal_blocks: Ints
    """Block of the column that the temporal state comes from."""
    dst_blocks: Ints
    """Block of the destination column."""

    def __len__(self) -> int:
        return len(self.rows)


NO_MOVES = Moves(*[NO_INTS] * 7)
"""Nothing is copied."""


def land(
    tables: Tables, rows: Ints, running: Ints, boundaries: Ints, written: Ints, block_tokens: int
) -> tuple[Moves, Ints, NDArray[np.bool_]]:
    """Puts states at the boundaries that commits have reached into the columns that end there.

    A commit reaches the boundary ``g`` when ``g >= w``, where ``w`` counts the tokens up to the first that was
    accepted: the state after ``g`` tokens then stands ``g - w`` tokens into the running column's speculative states.

    Args:
        tables: Tables of the rows.
        rows: Numbers of the rows, for the result.
        running: Running column of each.
        boundaries: Boundary that each has reached, in tokens.
        written: Tokens up to the first that was accepted.
        block_tokens: Tokens of a column.

    Returns:
        The copies, the block at each boundary, and which rows' running column holds nothing but the boundary's state
        from now on.
    """
    columns, biases = boundaries // block_tokens - 1, boundaries - written
    in_place = columns == running
    blocks = tables.block_at(columns)
    moved = np.flatnonzero(~in_place | (biases > 0))
    chosen = tables.take(moved)
    moves = Moves(
        rows[moved],
        running[moved],
        columns[moved],
        biases[moved],
        chosen.block_at(running[moved]),
        chosen.block_at(running[moved] + biases[moved]),
        blocks[moved],
    )
    return moves, blocks, in_place


@dataclass(frozen=True, slots=True, eq=False)
class Growth:
    """What becomes of tables when their next passes are scheduled."""

    tables: Tables
    """The tables, with `NEW` where a block is to be allocated, row by row and ascending in a row."""
    targets: Ints
    """Running columns from now on."""
    previous: Ints
    """Column that holds each state before the pass; `NO_COLUMN`: a sequence starts from nothing."""
    moved: Ints
    """Rows whose state must be copied to the target."""
    src_blocks: Ints
    """Block of that column, before the table grew."""
    temporal_blocks: Ints
    """Block of the last accepted token's temporal state, before the table grew."""
    retired_rows: Ints
    """Row of each block that a table gives up."""
    retired_blocks: Ints
    """The blocks, in the order of rows."""

    def known_targets(self) -> tuple[Ints, Ints]:
        """Lists the blocks that states are copied to, as far as they need not be allocated.

        Returns:
            Row and block of each.
        """
        blocks = self.tables.take(self.moved).block_at(self.targets[self.moved])
        known = blocks != NEW
        return self.moved[known], blocks[known]


def grow(
    tables: Tables, num_computed: Ints, num_accepted: Ints, running: Ints, targets: Ints, block_tokens: int
) -> Growth:
    """Retires columns whose state is no longer needed and grows tables so that the running column can be the target.

    Args:
        tables: The tables, which are changed.
        num_computed: Tokens computed, ``[n]``.
        num_accepted: Accepted tokens of the last commit that were not shifted away, ``[n]``.
        running: Running columns, or `NO_COLUMN`, ``[n]``.
        targets: Column in which the next pass ends, ``[n]``.
        block_tokens: Tokens of a column.
    """
    state_columns = (num_computed - 1) // block_tokens
    previous = np.where(running == NO_COLUMN, state_columns, running)
    src, temporal = tables.block_at(previous), tables.block_at(previous + num_accepted - 1)
    retired = (tables.kept_columns != NO_COLUMN) & (tables.kept_columns < state_columns[:, None])
    retired_rows, places = np.nonzero(retired)
    retired_blocks = tables.kept_blocks[retired_rows, places]
    tables.kept_columns[retired], tables.kept_blocks[retired] = NO_COLUMN, NULL
    _start(tables, targets, np.flatnonzero(tables.tail_start == NO_COLUMN))
    _move_tails(tables, targets, np.flatnonzero(targets > tables.tail_start))
    moved = np.flatnonzero((previous != NO_COLUMN) & (previous != targets))
    return Growth(tables, targets, previous, moved, src, temporal, retired_rows, retired_blocks)


def _start(tables: Tables, targets: Ints, rows: Ints) -> None:
    """Gives tails to tables that have none; an imported block that is still to be written becomes part of it."""
    if not len(rows):
        return
    tables.tail_start[rows] = targets[rows]
    tables.tail[rows] = NEW
    goes_on = rows[tables.kept_columns[rows, 0] == targets[rows]]
    tables.tail[goes_on, 0] = tables.kept_blocks[goes_on, 0]
    tables.kept_columns[goes_on, 0], tables.kept_blocks[goes_on, 0] = NO_COLUMN, NULL


def _move_tails(tables: Tables, targets: Ints, rows: Ints) -> None:
    """Moves tails on: the old running column is kept, speculative blocks left of the target move to the end."""
    if not len(rows):
        return
    num_spec = tables.tail.shape[1] - 1
    old_start, old_tail = tables.tail_start[rows], tables.tail[rows]
    place = np.where(tables.kept_columns[rows, 0] == NO_COLUMN, 0, 1)
    tables.kept_columns[rows, place], tables.kept_blocks[rows, place] = old_start, old_tail[:, 0]
    tables.tail_start[rows] = targets[rows]
    tables.tail[rows, num_spec] = NEW
    if num_spec:
        passed = np.clip(targets[rows] - old_start - 1, 0, num_spec)
        order = 1 + (passed[:, None] + np.arange(num_spec)) % num_spec
        tables.tail[rows, :num_spec] = np.take_along_axis(old_tail, order, axis=1)


def pull(growth: Growth, rows: Ints, num_accepted: Ints) -> tuple[Moves, Ints]:
    """Finds what must be done before the passes, when every `NEW` has become a block.

    Args:
        growth: The grown tables.
        rows: Numbers of the rows, for the result.
        num_accepted: As for `grow`.

    Returns:
        Copies of states to the new running columns, and the blocks that start from nothing and must be zero.
    """
    tables, moved, targets = growth.tables, growth.moved, growth.targets
    fresh = np.flatnonzero(growth.previous == NO_COLUMN)
    moves = Moves(
        rows[moved],
        growth.previous[moved],
        targets[moved],
        num_accepted[moved] - 1,
        growth.src_blocks[moved],
        growth.temporal_blocks[moved],
        tables.take(moved).block_at(targets[moved]),
    )
    return moves, tables.take(fresh).block_at(targets[fresh])
