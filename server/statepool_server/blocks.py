"""The table of blocks: generations, references, pins, and which block is handed out next.

A struct of arrays over dense block ids; every operation is a handful of numpy calls on a batch of ids, whatever the
size of the pool.

A block is in one of these places:

====================  ==========  ==========  =====  ======  ==========================
place                 generation  references  busy   listed  next
====================  ==========  ==========  =====  ======  ==========================
blank (free stack)    even        0           0      no      allocated, last freed first
held                  odd         > 0         any    any     released
evictable (LRU log)   odd         0           0      yes     retained, or evicted
releasing             odd         0           not 0  any     blank or evictable at the last unpin
====================  ==========  ==========  =====  ======  ==========================
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from statepool.errors import (
    BadFieldError,
    BlockBusyError,
    BlockIndexOutOfRangeError,
    GenerationStaleError,
    PoolExhaustedError,
)
from statepool.refs import BlockRefs

Ids = NDArray[np.int64]
"""Block ids, ``[n]``."""

WRITER = -1
"""Value of ``busy`` while one writer has the block; positive values count readers."""

_NOT_LOGGED = -1
_NO_IDS: Ids = np.empty(0, np.int64)
_ONE = np.uint64(1)
_ROWS = 4096


class BlockState(IntEnum):
    """What a block is at a moment; the numbers are those of the wire."""

    FREE = 1
    OWNED = 2
    SHARED = 3
    EVICTABLE = 4
    RELEASING = 5


class BlockTable:
    """Blocks by id.

    Attributes:
        block_count: Blocks, the null block included.
        generations: ``[block_count]``; odd while allocated.
        references: ``[block_count]``; references of all sessions.
        committed: ``[block_count]``; whether the block is immutable.
        listed: ``[block_count]``; whether the prefix index names the block.
        busy: ``[block_count]``; readers, or `WRITER`.
    """

    def __init__(self, block_count: int) -> None:
        self.block_count = block_count
        self.generations = np.zeros(block_count, np.int64)
        self.references = np.zeros(block_count, np.int64)
        self.committed = np.zeros(block_count, np.bool_)
        self.listed = np.zeros(block_count, np.bool_)
        self.busy = np.zeros(block_count, np.int64)
        self._free = np.arange(block_count - 1, 0, -1, dtype=np.int64)  # a stack: block 1 is on top
        self._free_count = block_count - 1
        self._log = np.empty(2 * block_count + 64, np.int64)  # least recently used first, with dead entries
        self._log_head = self._log_tail = 0
        self._log_position = np.full(block_count, _NOT_LOGGED, np.int64)
        self._evictable_count = 0
        self._mark = np.zeros(block_count, np.int64)
        self._rows = np.arange(_ROWS)
        self._capacity = np.uint64(block_count - 1)

    @property
    def capacity(self) -> int:
        """Blocks that can be allocated: all but the null block."""
        return self.block_count - 1

    @property
    def free_count(self) -> int:
        """Blank blocks."""
        return self._free_count

    @property
    def evictable_count(self) -> int:
        """Committed blocks that nobody holds or uses."""
        return self._evictable_count

    def refs(self, block_ids: Ids) -> BlockRefs:
        """Pairs blocks with their present generations."""
        return BlockRefs(block_ids, self.generations[block_ids])

    def check(self, refs: BlockRefs, field: str) -> Ids:
        """Checks that refs name allocated blocks at their present generation.

        Returns:
            The block ids.

        Raises:
            BlockIndexOutOfRangeError: An id is not in the pool, or is the null block.
            GenerationStaleError: A block was freed since the ref was handed out.
        """
        ids = refs.block_ids
        outside = ids.view(np.uint64) - _ONE >= self._capacity  # wraps 0 and negative ids around to huge ones
        if np.count_nonzero(outside):
            row = int(outside.argmax())
            raise BlockIndexOutOfRangeError(
                f"{field}[{row}]: block {ids[row]} is not one of 1 to {self.capacity}", field=field, row=row
            )
        current = self.generations[ids]
        stale = current != refs.generations
        stale |= current & 1 == 0
        if np.count_nonzero(stale):
            row = int(stale.argmax())
            raise GenerationStaleError(
                f"{field}[{row}]: block {ids[row]} is at generation {current[row]}, not {refs.generations[row]}",
                field=field,
                row=row,
            )
        return ids

    def has_duplicates(self, block_ids: Ids) -> bool:
        """Tells whether an id occurs twice."""
        rows = self._rows[: len(block_ids)] if len(block_ids) <= len(self._rows) else np.arange(len(block_ids))
        self._mark[block_ids] = rows
        return bool(np.count_nonzero(self._mark[block_ids] != rows))

    def check_distinct(self, block_ids: Ids, field: str) -> None:
        """Refuses a block that is named twice.

        Raises:
            BadFieldError: There is one.
        """
        if self.has_duplicates(block_ids):
            raise BadFieldError(f"{field}: a block is named twice", field=field)

    def check_room(self, count: int) -> None:
        """Refuses an allocation that cannot be met.

        Raises:
            PoolExhaustedError: Fewer blocks are free and evictable.
        """
        if count > self._free_count + self._evictable_count:
            raise PoolExhaustedError(
                f"{count} blocks requested, {self._free_count} free and {self._evictable_count} evictable",
                field="count",
                retry_after=0.1,
                free=self._free_count,
                evictable=self._evictable_count,
                requested=count,
            )

    def pop_least_recent(self, count: int) -> Ids:
        """Takes the least recently used evictable blocks out of the log; the caller unlists and blanks them."""
        found: list[Ids] = []
        missing = count
        while missing:
            window = self._log[self._log_head : min(self._log_head + 2 * missing, self._log_tail)]
            positions = np.arange(self._log_head, self._log_head + len(window))
            live = (self._log_position[window] == positions).nonzero()[0][:missing]
            found.append(window[live])
            missing -= len(live)
            self._log_head += len(window) if missing else int(live[-1]) + 1
        ids = np.concatenate(found) if len(found) != 1 else found[0].copy()
        self._log_position[ids] = _NOT_LOGGED
        self._evictable_count -= count
        return ids

    def take(self, count: int) -> Ids:
        """Takes blank blocks, last freed first, and gives each one reference; enough must be there."""
        self._free_count -= count
        ids = self._free[self._free_count : self._free_count + count][::-1].copy()
        self.generations[ids] += 1
        self.references[ids] = 1
        return ids

    def settle(self, block_ids: Ids) -> Ids:
        """Puts blocks that nobody holds or uses where they belong: listed ones into the log, others onto the stack.

        Args:
            block_ids: Distinct blocks; those with a reference or a pin stay as they are.

        Returns:
            The blocks that became blank, in order.
        """
        in_use = self.references[block_ids] | self.busy[block_ids]
        idle = block_ids[in_use == 0] if np.count_nonzero(in_use) else block_ids
        listed = self.listed[idle]
        listed_count = np.count_nonzero(listed)
        if listed_count == len(idle):
            self._push_most_recent(idle)
            return _NO_IDS
        if listed_count:
            self._push_most_recent(idle[listed])
            idle = idle[~listed]
        if len(idle):
            self.generations[idle] += 1
            self.committed[idle] = False
            self._free[self._free_count : self._free_count + len(idle)] = idle[::-1]
            self._free_count += len(idle)
        return idle

    def unlog(self, block_ids: Ids) -> None:
        """Takes blocks out of the log, where they are in it: they are wanted again."""
        logged = block_ids[self._log_position[block_ids] != _NOT_LOGGED]
        if len(logged):
            self._log_position[logged] = _NOT_LOGGED
            self._evictable_count -= len(np.unique(logged))

    def pin(self, readers: Ids, writers: Ids) -> None:
        """Marks blocks as being read or written; each argument holds a block once, and none is in both."""
        self.unlog(readers)
        self.busy[readers] += 1
        self.busy[writers] = WRITER

    def unpin(self, readers: Ids, writers: Ids) -> Ids:
        """Takes marks back.

        Returns:
            The blocks that became blank by it.
        """
        self.busy[readers] -= 1
        self.busy[writers] = 0
        return self.settle(np.concatenate((readers, writers)))

    def check_idle(self, block_ids: Ids, field: str, *, readers_too: bool) -> None:
        """Refuses blocks that are in use.

        Args:
            block_ids: The blocks.
            field: Request field that names them.
            readers_too: Whether readers stand in the way as well as a writer.

        Raises:
            BlockBusyError: One is.
        """
        busy = self.busy[block_ids] != 0 if readers_too else self.busy[block_ids] == WRITER
        if np.count_nonzero(busy):
            row = int(busy.argmax())
            raise BlockBusyError(
                f"{field}[{row}]: a copy, read or write of block {block_ids[row]} is running", field=field, row=row
            )

    def states(self, block_ids: Ids) -> NDArray[np.int64]:
        """Tells each block's `BlockState`."""
        held = np.where(self.committed[block_ids], BlockState.SHARED, BlockState.OWNED)
        idle = np.where(self.busy[block_ids] != 0, BlockState.RELEASING, BlockState.EVICTABLE)
        allocated = np.where(self.references[block_ids] > 0, held, idle)
        return np.where(self.generations[block_ids] & 1 == 1, allocated, BlockState.FREE)

    def evictable(self) -> Ids:
        """Lists the evictable blocks, least recently used first."""
        window = self._log[self._log_head : self._log_tail]
        live: Ids = window[self._log_position[window] == np.arange(self._log_head, self._log_tail)]
        return live

    def free(self) -> Ids:
        """Lists the blank blocks, the next to be handed out first."""
        return self._free[: self._free_count][::-1]

    def _push_most_recent(self, block_ids: Ids) -> None:
        if self._log_tail + len(block_ids) > len(self._log):
            self._compact()
        end = self._log_tail + len(block_ids)
        self._log[self._log_tail : end] = block_ids
        self._log_position[block_ids] = np.arange(self._log_tail, end)
        self._log_tail = end
        self._evictable_count += len(block_ids)

    def _compact(self) -> None:
        # The log is twice the pool, so a compaction is paid for by at least a pool's worth of pushes since the last.
        live = self.evictable()
        self._log[: len(live)] = live
        self._log_position[live] = np.arange(len(live))
        self._log_head, self._log_tail = 0, len(live)
