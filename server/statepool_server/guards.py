"""Checks that several use cases share; each raises before anything has changed."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from statepool.errors import (
    BadFieldError,
    BlockInSequenceError,
    BlockNotOwnedError,
    BlockNotWritableError,
    BoundaryNotWrittenError,
    ColumnLengthMismatchError,
)
from statepool.refs import BlockRefs
from statepool_server.blocks import ONE, ZERO, BlockTable, Counts, first_true
from statepool_server.holdings import Holdings
from statepool_server.prefix import PrefixIndex
from statepool_server.recency import Ids
from statepool_server.sequences.table import SequenceTables
from statepool_server.sessions import Session


class Guards:
    """Decides whether a session may do something to blocks."""

    def __init__(self, blocks: BlockTable, holdings: Holdings, prefixes: PrefixIndex) -> None:
        self._blocks = blocks
        self._holdings = holdings
        self._prefixes = prefixes

    def owned(self, session: Session, ids: Ids, field: str, counts: Counts = ONE) -> None:
        """Refuses blocks to which the session holds fewer references than counted.

        Raises:
            BlockNotOwnedError: There is one.
        """
        row = self._holdings.first_short(session, ids, counts)
        if row >= 0:
            raise BlockNotOwnedError(
                f"{field}: session {session.session_id} holds too few references to block {ids[row]}",
                field=field,
                block=int(ids[row]),
            )

    def readable(self, session: Session, ids: Ids, field: str) -> None:
        """Refuses blocks that are neither committed nor the session's.

        Raises:
            BlockNotOwnedError: There is one.
        """
        uncommitted = ~self._blocks.committed[ids]
        if first_true(uncommitted) >= 0:
            self.owned(session, ids[uncommitted], field)

    def uncommitted_or_same(self, ids: Ids, namespace: str, prefix_hashes: Sequence[bytes]) -> None:
        """Refuses blocks that are committed, unless it is under the same hash.

        Raises:
            BlockNotWritableError: There is one.
        """
        for row in self._blocks.committed[ids].nonzero()[0].tolist():
            block = int(ids[row])
            if self._prefixes.name_of(block) != (namespace, prefix_hashes[row]):
                raise BlockNotWritableError(
                    f"blocks[{row}]: block {block} is committed already", field="blocks", row=row
                )

    def in_sequences(self, ids: Ids) -> NDArray[np.bool_]:
        """Tells which blocks stand in a block table."""
        stands: NDArray[np.bool_] = self._holdings.in_sequences[ids] != ZERO
        return stands

    def outside_sequences(self, session: Session, ids: Ids, counts: Counts, sequences: SequenceTables) -> None:
        """Refuses to give up references that a session holds through its sequences.

        Args:
            session: The session; it holds the blocks.
            ids: Distinct blocks.
            counts: References to give up.
            sequences: Sequences of all sessions.

        Raises:
            BlockInSequenceError: There is one.
        """
        if first_true(self.in_sequences(ids)) < 0:
            return
        own = np.bincount(sequences.held_blocks(session.session_id), minlength=len(self._holdings.in_sequences))
        row = first_true(self._holdings.count(session, ids) - own[ids] < counts)
        if row >= 0:
            raise BlockInSequenceError(f"block {ids[row]} stands in a block table", field="blocks", block=int(ids[row]))

    def committable(self, ids: Ids) -> None:
        """Refuses uncommitted blocks that stand in block tables: steps commit them, at boundaries that they prove.

        Raises:
            BlockInSequenceError: There is one.
        """
        row = first_true(self.in_sequences(ids) & ~self._blocks.committed[ids])
        if row >= 0:
            raise BlockInSequenceError(
                f"blocks[{row}]: block {ids[row]} stands in a block table", field="blocks", row=row
            )

    def source(self, session: Session, refs: BlockRefs, field: str) -> Ids:
        """Checks blocks that are to be read.

        Returns:
            The blocks, each once.

        Raises:
            BlockNotOwnedError: Neither committed nor the session's.
            BlockBusyError: Being written.
            GenerationStaleError, BlockIndexOutOfRangeError: A bad ref.
        """
        ids = self._blocks.check(refs, field)
        self.readable(session, ids, field)
        self._blocks.check_idle(ids, field, readers_too=False)
        return np.unique(ids)

    def destination(self, session: Session, refs: BlockRefs, field: str) -> Ids:
        """Checks blocks that are to be written.

        Returns:
            The blocks.

        Raises:
            BadFieldError: A block named twice.
            BlockNotOwnedError, BlockNotWritableError, BlockBusyError: Not the session's to write now.
            GenerationStaleError, BlockIndexOutOfRangeError: A bad ref.
        """
        ids = self._blocks.check(refs, field)
        self._blocks.check_distinct(ids, field)
        self.owned(session, ids, field)
        row = first_true(self._blocks.committed[ids])
        if row >= 0:
            raise BlockNotWritableError(f"{field}[{row}]: block {ids[row]} is committed", field=field, row=row)
        self._blocks.check_idle(ids, field, readers_too=True)
        return ids


def check_boundaries(block_tokens: int, boundary: NDArray[np.int64], written: NDArray[np.int64]) -> None:
    """Checks that every state stands exactly at a block boundary.

    Raises:
        BadFieldError: A boundary that is not a positive multiple of `block_tokens`.
        BoundaryNotWrittenError: The tokens written through are not the boundary.
    """
    row = max(first_true(boundary <= ZERO), first_true(boundary % block_tokens != ZERO))
    if row >= 0:
        raise BadFieldError(
            f"boundary_tokens[{row}]: {boundary[row]} is not a positive multiple of {block_tokens}",
            field="boundary_tokens",
            row=row,
        )
    row = first_true(boundary != written)
    if row >= 0:
        raise BoundaryNotWrittenError(
            f"row {row}: the boundary is at token {boundary[row]}, but tokens are written through {written[row]}",
            field="written_through_tokens",
            row=row,
        )


def check_lengths(rows: int, **columns: Sequence[bytes] | NDArray[np.int64] | BlockRefs) -> None:
    """Checks that columns have the same number of rows.

    Raises:
        ColumnLengthMismatchError: One has not; the keyword is the field.
    """
    for name, column in columns.items():
        if len(column) != rows:
            raise ColumnLengthMismatchError(f"{name} has {len(column)} rows, not {rows}", field=name)
