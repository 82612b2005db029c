"""The order in which evictable blocks are given up: least recently used first."""

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
"""Block ids, ``[n]``."""

_ABSENT = -1
_SMALLEST_WINDOW = 256
_SPARE_ENTRIES = 64


class RecencyLog:
    """Blocks in the order of their last use, as a log that every use is appended to.

    A block that leaves the order stays in the log as a dead entry: an entry lives while its position is the one noted
    for its block. So every operation is a few numpy calls on its own batch. The log is twice as long as there are
    blocks; when it is full, the living entries move to its front, which is paid for by at least as many appends as
    there are blocks.
    """

    def __init__(self, block_count: int) -> None:
        """Builds an empty order.

        Args:
            block_count: Block ids are below it.
        """
        self._log = np.empty(2 * block_count + _SPARE_ENTRIES, np.int64)
        self._head = self._tail = 0
        self._position = np.full(block_count, _ABSENT, np.int64)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, block_ids: Ids) -> None:
        """Adds blocks as the most recently used, the last row the most; distinct, and none is in the order."""
        if self._tail + len(block_ids) > len(self._log):
            self._compact()
        end = self._tail + len(block_ids)
        self._log[self._tail : end] = block_ids
        self._position[block_ids] = np.arange(self._tail, end)
        self._tail = end
        self._count += len(block_ids)

    def discard(self, block_ids: Ids) -> None:
        """Takes blocks out, where they are in; a block may be named twice."""
        present = block_ids[self._position[block_ids] != _ABSENT]
        if len(present):
            self._position[present] = _ABSENT
            self._count -= len(np.unique(present))

    def pop(self, count: int) -> Ids:
        """Takes the least recently used blocks out, the least first; so many must be in."""
        window = self._log[self._head : self._head + count]
        if len(self._live(self._head, window)) == count:  # the common case: no dead entry among the oldest
            ids = window.copy()
            self._head += count
        else:
            ids = self._pop_between_dead(count)
        self._position[ids] = _ABSENT
        self._count -= count
        return ids

    def block_ids(self) -> Ids:
        """Lists the blocks, least recently used first."""
        window = self._log[self._head : self._tail]
        ids: Ids = window[self._live(self._head, window)]
        return ids

    def _pop_between_dead(self, count: int) -> Ids:
        found, missing, size = [], count, max(2 * count, _SMALLEST_WINDOW)
        while missing:
            window = self._log[self._head : min(self._head + size, self._tail)]
            live = self._live(self._head, window)[:missing]
            found.append(window[live])
            missing -= len(live)
            self._head += len(window) if missing else int(live[-1]) + 1
            size *= 2  # a long stretch of dead entries costs few steps
        return np.concatenate(found)

    def _live(self, start: int, window: Ids) -> NDArray[np.intp]:
        rows: NDArray[np.intp] = (self._position[window] == np.arange(start, start + len(window))).nonzero()[0]
        return rows

    def _compact(self) -> None:
        live = self.block_ids()
        self._log[: len(live)] = live
        self._position[live] = np.arange(len(live))
        self._head, self._tail = 0, len(live)
