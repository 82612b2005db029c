"""Block tables of a batch of sequences, as columns that hold only what is not null.

A block table is a list of columns; column ``c`` ends at token ``(c + 1) * block_tokens``. However long it is, only a
few of its columns hold blocks:

* the *tail*, its last ``1 + num_spec`` columns: the newest running column and those of its speculative states;
* at most two *kept* columns before it: earlier running columns (or the hit or imported block of a sequence that has not
  run) that the state may still be in.

Why two are enough: a kept column is retired when the tokens computed pass its end, and the tail moves by more than one
column only in a pass without drafts, after which the tokens computed stand in the running column. So one kept column
may be left from the pass before, and one is added when the tail moves.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
"""A column of integers, ``[n]``, or several, ``[n, k]``."""

NO_INTS: Ints = np.empty(0, np.int64)
"""An empty column; shared, since making one costs a quarter of a microsecond and a step has twenty."""
NO_INTS.flags.writeable = False

NULL = 0
"""The null block: no state is kept here."""
NO_COLUMN = -1
"""A column that is not there."""
KEPT = 2
"""Kept columns of a table."""
NEVER = 2**62
"""More tokens than any sequence has."""
NEW = -1
"""Stands for a block that is still to be allocated."""


@dataclass(slots=True, eq=False)
class Tables:
    """Block tables, one per row."""

    tail_start: Ints
    """First column of the tail, ``[n]``; `NO_COLUMN` before a sequence has run."""
    tail: Ints
    """Blocks of the tail, ``[n, 1 + num_spec]``."""
    kept_columns: Ints
    """Kept columns, ``[n, KEPT]``, or `NO_COLUMN`; in no particular order."""
    kept_blocks: Ints
    """Their blocks, ``[n, KEPT]``."""

    def __len__(self) -> int:
        return len(self.tail_start)

    @classmethod
    def blank(cls, rows: int, num_spec: int) -> "Tables":
        """Makes empty tables."""
        return cls(
            np.full(rows, NO_COLUMN, np.int64),
            np.full((rows, 1 + num_spec), NULL, np.int64),
            np.full((rows, KEPT), NO_COLUMN, np.int64),
            np.full((rows, KEPT), NULL, np.int64),
        )

    def take(self, rows: Ints) -> "Tables":
        """Copies rows."""
        return Tables(self.tail_start[rows], self.tail[rows], self.kept_columns[rows], self.kept_blocks[rows])

    def put(self, rows: Ints, tables: "Tables") -> None:
        """Overwrites rows."""
        self.tail_start[rows] = tables.tail_start
        self.tail[rows] = tables.tail
        self.kept_columns[rows] = tables.kept_columns
        self.kept_blocks[rows] = tables.kept_blocks

    def block_at(self, columns: Ints) -> Ints:
        """Finds the block of one column of each row, `NULL` where there is none."""
        rows, place = np.arange(len(self)), columns - self.tail_start
        in_tail = (place >= 0) & (place < self.tail.shape[1]) & (self.tail_start != NO_COLUMN)
        blocks: Ints = np.where(in_tail, self.tail[rows, np.where(in_tail, place, 0)], NULL)
        for index in range(KEPT):
            blocks = np.where(self.kept_columns[:, index] == columns, self.kept_blocks[:, index], blocks)
        return blocks

    def lengths(self) -> Ints:
        """Counts the columns of each table, nulls included."""
        started = self.tail_start != NO_COLUMN
        lengths: Ints = np.where(started, self.tail_start + self.tail.shape[1], self.kept_columns.max(axis=1) + 1)
        return lengths

    def is_compact(self) -> NDArray[np.bool_]:
        """Tells which tables have no kept column, so that nothing can be retired from them."""
        compact: NDArray[np.bool_] = (self.kept_columns == NO_COLUMN).all(axis=1)
        return compact

    def entries(self) -> tuple[Ints, Ints, Ints]:
        """Lists the columns that are not null, row by row and ascending in a row.

        Returns:
            Row, column and block of each.
        """
        width = self.tail.shape[1]
        started = (self.tail_start != NO_COLUMN)[:, None]
        tail_columns = np.where(started, self.tail_start[:, None] + np.arange(width), NO_COLUMN)
        columns = np.concatenate((self.kept_columns, tail_columns), axis=1)
        blocks = np.concatenate((self.kept_blocks, self.tail), axis=1)
        order = np.argsort(columns, axis=1, kind="stable")
        columns, blocks = np.take_along_axis(columns, order, axis=1), np.take_along_axis(blocks, order, axis=1)
        rows, places = np.nonzero(columns != NO_COLUMN)
        return rows, columns[rows, places], blocks[rows, places]

    def deepest_first(self) -> tuple[Ints, Ints]:
        """Lists all blocks, row by row, the last column of a row first: the order in which a finish drops them.

        Returns:
            Row and block of each.
        """
        rows, columns, blocks = self.entries()
        order = np.lexsort((-columns, rows))
        return rows[order], blocks[order]
