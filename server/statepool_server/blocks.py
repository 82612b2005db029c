"""The table of blocks: generations, references, pins, and which block is handed out next.

A struct of arrays over dense block ids; every operation is a handful of numpy calls on a batch of ids, whatever the
size of the pool.

A block is in one of these places:

====================  ==========  ==========  =====  ======  ==========================
place                 generation  references  busy   listed  next
====================  ==========  ==========  =====  ======  ==========================
blank (free stack)    even        0           0      no      allocated, last freed first
held                  odd         > 0         any    any     released
evictable (recency)   odd         0           0      yes     retained, or evicted
releasing             odd         0           not 0  any     blank or evictable at the last unpin
====================  ==========  ==========  =====  ======  ==========================

A held or releasing block may be in quarantine beside: fences stand around it, and until the last is gone it is neither
released nor used. A block is condemned when the bytes of its state are not what was committed: one more fence stands
around it until it is pardoned.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statepool.errors import (
    BadFieldError,
    BlockBusyError,
    BlockIndexOutOfRangeError,
    ChecksumMismatchError,
    GenerationStaleError,
    PoolExhaustedError,
)
from statepool.refs import BlockRefs
from statepool_server.recency import Ids, RecencyLog

Counts = NDArray[np.int64]
"""A number per row, ``[n]``, or one for all rows, ``[]``."""

WRITER = -1
"""Value of ``busy`` while one writer has the block; positive values count readers."""

RETRY_AFTER_SECONDS = 0.1
"""Hint to a caller who found the pool exhausted: a step of an engine takes about as long."""

_ROWS = 4096
_COLUMNS = ("generations", "references", "committed", "listed", "busy", "fences", "condemned")

ZERO: Counts = np.array(0, np.int64)
"""0 as an array: numpy takes as long to make an array of a number as to compare a batch with it."""
ONE: Counts = np.array(1, np.int64)
"""1 as an array."""
_WRITER = np.array(WRITER, np.int64)


class BlockState(IntEnum):
    """What a block is at a moment; the numbers are those of the wire."""

    FREE = 1
    OWNED = 2
    SHARED = 3
    EVICTABLE = 4
    RELEASING = 5
    QUARANTINED = 6


@dataclass(frozen=True, slots=True, eq=False)
class BlocksState:
    """A table of blocks at a moment; columns as of `BlockTable`."""

    generations: Ids
    """``[block_count]``."""
    references: Ids
    """``[block_count]``."""
    committed: NDArray[np.bool_]
    """``[block_count]``."""
    listed: NDArray[np.bool_]
    """``[block_count]``."""
    busy: Ids
    """``[block_count]``."""
    fences: Ids
    """``[block_count]``."""
    condemned: NDArray[np.bool_]
    """``[block_count]``."""
    free: Ids
    """Blank blocks, the next to be handed out first."""
    evictable: Ids
    """Evictable blocks, the next to be evicted first."""


def first_true(mask: NDArray[np.bool_]) -> int:
    """Finds the first row that is true, -1 where none is.

    Searching the bytes costs a fifth of ``mask.any()``, whose set-up is dear at the size of a batch.
    """
    return mask.tobytes().find(1)


class BlockTable:
    """Blocks by id.

    Attributes:
        block_count: Blocks, the null block included.
        generations: ``[block_count]``; odd while allocated.
        references: ``[block_count]``; references of all sessions.
        committed: ``[block_count]``; whether the block is immutable.
        listed: ``[block_count]``; whether the prefix index names the block.
        busy: ``[block_count]``; readers, or `WRITER`.
        fences: ``[block_count]``; fences around the block: while there are any, it is in quarantine.
        condemned: ``[block_count]``; whether one of the fences is there since the block's bytes have changed.
        evictable: The blocks that nobody holds or uses, but that can still be found, in the order of their last use.
        held_count: Blocks with a reference.
        busy_count: Blocks that are read or written.
        quarantined_count: Blocks in quarantine, condemned ones included.
        condemned_count: Condemned blocks.
        released_count: How often blocks became blank or evictable, since the pool was made.
    """

    def __init__(self, block_count: int) -> None:
        self.block_count = block_count
        self.generations = np.zeros(block_count, np.int64)
        self.references = np.zeros(block_count, np.int64)
        self.committed = np.zeros(block_count, np.bool_)
        self.listed = np.zeros(block_count, np.bool_)
        self.busy = np.zeros(block_count, np.int64)
        self.fences = np.zeros(block_count, np.int64)
        self.condemned = np.zeros(block_count, np.bool_)
        self.evictable = RecencyLog(block_count)
        self.held_count = self.busy_count = self.quarantined_count = self.condemned_count = 0
        self.released_count = 0
        self._free = np.arange(block_count - 1, 0, -1, dtype=np.int64)  # a stack: block 1 is on top
        self._free_count = block_count - 1
        self._mark = np.zeros(block_count, np.int64)
        self._rows = np.arange(_ROWS)
        self._limit = np.array(block_count, np.uint64)

    @property
    def capacity(self) -> int:
        """Blocks that can be allocated: all but the null block."""
        return self.block_count - 1

    @property
    def free_count(self) -> int:
        """Blank blocks."""
        return self._free_count

    def refs(self, block_ids: Ids) -> BlockRefs:
        """Pairs blocks with their present generations."""
        return BlockRefs(block_ids, self.generations[block_ids])

    # Checks: each raises before anything has changed

    def check(self, refs: BlockRefs, field: str) -> Ids:
        """Checks that refs name allocated blocks at their present generation.

        Returns:
            The block ids.

        Raises:
            BlockIndexOutOfRangeError: An id is not in the pool, or is the null block.
            GenerationStaleError: A block was freed since the ref was handed out.
        """
        ids = refs.block_ids
        # As unsigned numbers, negative ids are huge ones. The null block's generation is even, as of one that is free.
        if first_true(ids.view(np.uint64) >= self._limit) >= 0:
            self._refuse(refs, field)
        current = self.generations[ids]
        same = current.tobytes() == refs.generations.tobytes()
        if not same or np.count_nonzero(current & ONE) != len(current):
            self._refuse(refs, field)
        return ids

    def _refuse(self, refs: BlockRefs, field: str) -> None:
        ids = refs.block_ids
        row = first_true((ids < 1) | (ids >= self.block_count))
        if row >= 0:
            raise BlockIndexOutOfRangeError(
                f"{field}[{row}]: block {ids[row]} is not one of 1 to {self.capacity}", field=field, row=row
            )
        current = self.generations[ids]
        row = first_true((current != refs.generations) | (current & 1 == 0))
        raise GenerationStaleError(
            f"{field}[{row}]: block {ids[row]} is at generation {current[row]}, not {refs.generations[row]}",
            field=field,
            row=row,
        )

    def first_repeat(self, block_ids: Ids) -> int:
        """Finds a row whose block is named again further down, -1 where every block is named once."""
        rows = self._rows[: len(block_ids)] if len(block_ids) <= len(self._rows) else np.arange(len(block_ids))
        self._mark[block_ids] = rows  # the last row of a block stays
        return first_true(self._mark[block_ids] != rows)

    def check_distinct(self, block_ids: Ids, field: str) -> None:
        """Refuses a block that is named twice.

        Raises:
            BadFieldError: There is one.
        """
        row = self.first_repeat(block_ids)
        if row >= 0:
            raise BadFieldError(f"{field}[{row}]: block {block_ids[row]} is named twice", field=field, row=row)

    def check_idle(self, block_ids: Ids, field: str, *, readers_too: bool, rows: Ids | None = None) -> None:
        """Refuses blocks that are in use.

        Args:
            block_ids: The blocks.
            field: Request field that names them.
            readers_too: Whether readers stand in the way as well as a writer.
            rows: Row of the request that each block belongs to; None: they are the rows.

        Raises:
            BlockBusyError: One is, or is in quarantine.
        """
        self.check_clear(block_ids, field)
        at = first_true(self.busy[block_ids] != ZERO if readers_too else self.busy[block_ids] == _WRITER)
        if at >= 0:
            row = at if rows is None else int(rows[at])
            raise BlockBusyError(
                f"{field}[{row}]: a copy, read or write of block {block_ids[at]} is running", field=field, row=row
            )

    def check_clear(self, block_ids: Ids, field: str) -> None:
        """Refuses blocks in quarantine.

        Raises:
            ChecksumMismatchError: One is condemned.
            BlockBusyError: As `check_quiesced`.
        """
        row = first_true(self.condemned[block_ids]) if self.condemned_count else -1
        if row >= 0:
            raise ChecksumMismatchError(
                f"{field}: the bytes of block {block_ids[row]} have changed since it was committed",
                field=field,
                block=int(block_ids[row]),
            )
        self.check_quiesced(block_ids, field)

    def check_quiesced(self, block_ids: Ids, field: str) -> None:
        """Refuses blocks that attached processes may still write for a session that lost them.

        Raises:
            BlockBusyError: There is one; a retry helps as soon as these processes have answered.
        """
        if self.quarantined_count == self.condemned_count:
            return
        row = first_true(self.fences[block_ids] > self.condemned[block_ids])
        if row >= 0:
            raise BlockBusyError(
                f"{field}: block {block_ids[row]} is in quarantine, an attached process may still write it",
                field=field,
                retry_after=RETRY_AFTER_SECONDS,
                block=int(block_ids[row]),
            )

    def check_room(self, count: int) -> None:
        """Refuses an allocation that cannot be met.

        Raises:
            BadFieldError: The count is negative.
            PoolExhaustedError: Fewer blocks are free and evictable; a retry helps unless the pool has fewer at all.
        """
        if count < 0:
            raise BadFieldError(f"count is {count}, below 0", field="count")
        if count > self._free_count + len(self.evictable):
            raise PoolExhaustedError(
                f"{count} blocks requested, {self._free_count} free and {len(self.evictable)} evictable",
                field="count",
                retry_after=RETRY_AFTER_SECONDS if count <= self.capacity else None,
                free=self._free_count,
                evictable=len(self.evictable),
                requested=count,
            )

    # Changes: what they need was checked

    def take(self, count: int) -> BlockRefs:
        """Takes blank blocks, last freed first, and gives each one reference; so many must be there."""
        self._free_count -= count
        self.held_count += count
        ids = self._free[self._free_count : self._free_count + count][::-1].copy()
        generations = self.generations[ids]
        generations += ONE
        self.generations[ids] = generations
        self.references[ids] = 1
        return BlockRefs(ids, generations)

    def retain(self, block_ids: Ids) -> None:
        """Adds one reference per row; a block may be in several rows."""
        self.evictable.discard(block_ids)
        unheld = block_ids[self.references[block_ids] == 0]
        self.held_count += len(np.unique(unheld))
        np.add.at(self.references, block_ids, 1)

    def drop(self, block_ids: Ids, counts: Counts) -> Ids:
        """Drops references of distinct blocks, as many of each as counted.

        Returns:
            The blocks that became blank by it, in order.
        """
        left = self.references[block_ids] - counts
        self.references[block_ids] = left
        unheld = block_ids[left == 0] if np.count_nonzero(left) else block_ids
        self.held_count -= len(unheld)
        in_use = self.busy[unheld] != ZERO
        if self.quarantined_count:
            in_use |= self.fences[unheld] != ZERO
        return self._settle(unheld[~in_use] if first_true(in_use) >= 0 else unheld)

    def commit(self, block_ids: Ids) -> None:
        """Makes blocks immutable, and notes that the prefix index names them."""
        self.committed[block_ids] = True
        self.listed[block_ids] = True

    def unlist(self, block_ids: Ids, idle: Ids) -> None:
        """Notes that the prefix index names blocks no longer.

        Args:
            block_ids: Distinct blocks, none of them among the evictable any more.
            idle: Those that nobody holds or uses: they become blank.
        """
        self.listed[block_ids] = False
        self._blank(idle)

    def pin(self, readers: Ids, writers: Ids) -> None:
        """Marks blocks as being read or written; each argument holds a block once, and none is in both."""
        self.evictable.discard(readers)
        readers_before = self.busy[readers]
        self.busy[readers] = readers_before + 1
        self.busy[writers] = WRITER
        self.busy_count += len(readers) - int(np.count_nonzero(readers_before)) + len(writers)

    def unpin(self, readers: Ids, writers: Ids) -> Ids:
        """Takes marks back.

        Returns:
            The blocks that became blank by it, in order.
        """
        readers_left = self.busy[readers] - 1
        self.busy[readers] = readers_left
        self.busy[writers] = 0
        self.busy_count -= len(readers) - int(np.count_nonzero(readers_left)) + len(writers)
        return self.release(np.concatenate((readers, writers)))

    def quarantine(self, block_ids: Ids) -> None:
        """Puts a fence around distinct blocks, which are allocated and not among the evictable."""
        before = self.fences[block_ids]
        self.fences[block_ids] = before + 1
        self.quarantined_count += len(block_ids) - int(np.count_nonzero(before))

    def clear(self, block_ids: Ids) -> Ids:
        """Takes a fence away from around distinct blocks.

        Returns:
            The blocks that left quarantine by it; `release` them.
        """
        left = self.fences[block_ids] - 1
        self.fences[block_ids] = left
        cleared: Ids = block_ids[left == 0]
        self.quarantined_count -= len(cleared)
        return cleared

    def condemn(self, block_ids: Ids) -> None:
        """Puts the fence of the condemned around distinct blocks, which are allocated and not condemned yet."""
        self.evictable.discard(block_ids)
        self.condemned[block_ids] = True
        self.condemned_count += len(block_ids)
        self.quarantine(block_ids)

    def pardon(self) -> Ids:
        """Makes the condemned blocks ordinary ones in quarantine.

        Returns:
            The blocks; `clear` them.
        """
        ids = self.condemned.nonzero()[0]
        self.condemned[ids] = False
        self.condemned_count = 0
        return ids

    def release(self, block_ids: Ids) -> Ids:
        """Puts those of the blocks that nobody holds or uses where they belong.

        Returns:
            The blocks that became blank by it, in order.
        """
        return self._settle(self.idle(block_ids))

    # What is there

    def states(self, block_ids: Ids) -> NDArray[np.int64]:
        """Tells each block's `BlockState`."""
        held = np.where(self.committed[block_ids], BlockState.SHARED, BlockState.OWNED)
        idle = np.where(self.busy[block_ids] != 0, BlockState.RELEASING, BlockState.EVICTABLE)
        allocated = np.where(self.references[block_ids] > 0, held, idle)
        allocated = np.where(self.fences[block_ids] > 0, BlockState.QUARANTINED, allocated)
        return np.where(self.generations[block_ids] & 1 == 1, allocated, BlockState.FREE)

    def idle(self, block_ids: Ids) -> Ids:
        """Selects the blocks that nobody holds or uses, and that are not in quarantine."""
        in_use = self.references[block_ids] | self.busy[block_ids] | self.fences[block_ids]
        ids: Ids = block_ids[in_use == ZERO]
        return ids

    def free(self) -> Ids:
        """Lists the blank blocks, the next to be handed out first."""
        return self._free[: self._free_count][::-1]

    # As a whole

    def dump(self) -> BlocksState:
        """Shows everything, without copying the columns."""
        columns: dict[str, Any] = {name: getattr(self, name) for name in _COLUMNS}
        return BlocksState(**columns, free=self.free(), evictable=self.evictable.block_ids())

    def load(self, state: BlocksState) -> None:
        """Takes a state over; the table must be new and of the same size."""
        for name in _COLUMNS:
            getattr(self, name)[:] = getattr(state, name)
        self._free_count = len(state.free)
        self._free[: self._free_count] = state.free[::-1]
        self.evictable.append(state.evictable)
        self.held_count = int(np.count_nonzero(self.references))
        self.busy_count = int(np.count_nonzero(self.busy))
        self.quarantined_count = int(np.count_nonzero(self.fences))
        self.condemned_count = int(np.count_nonzero(self.condemned))

    def outdate(self, block_ids: Ids, generations: Ids) -> None:
        """Makes sure that no ref to blank blocks can be good.

        Args:
            block_ids: Distinct blank blocks, ``[n]``.
            generations: Generations that they may have had beside those that are known, ``[n]``.
        """
        self.generations[block_ids] = (np.maximum(self.generations[block_ids], generations) | ONE) + ONE

    def keep_generations_in(self, column: Ids) -> None:
        """Moves the generations to other memory, ``[block_count]``."""
        column[:] = self.generations
        self.generations = column

    # Steps

    def _settle(self, idle: Ids) -> Ids:
        """Puts blocks that nobody holds or uses where they belong; returns those that became blank."""
        self.released_count += len(idle)
        listed = self.listed[idle]
        if first_true(listed) < 0:
            return self._blank(idle)
        if first_true(~listed) < 0:
            self.evictable.append(idle)
            return idle[:0]
        self.evictable.append(idle[listed])
        return self._blank(idle[~listed])

    def _blank(self, idle: Ids) -> Ids:
        if len(idle):
            self.generations[idle] = self.generations[idle] + ONE
            self.committed[idle] = False
            self._free[self._free_count : self._free_count + len(idle)] = idle[::-1]
            self._free_count += len(idle)
        return idle
