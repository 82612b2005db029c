"""What watchers of a pool are told: which prefixes can be found, and what changes."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from statepool.refs import BlockRefs


class ChangeKind(IntEnum):
    """What is told; the numbers are those of the wire."""

    SNAPSHOT = 1
    """The blocks that could be found at a moment, or some of them. What was known before the first part is void."""
    EVENTS = 2
    """What has changed since the changes before."""
    PROGRESS = 3
    """Nothing has changed; comes at least every second while nothing else does."""
    LOST = 4
    """The watcher has fallen behind what the server keeps, so some changes are not told. A snapshot follows."""


@dataclass(frozen=True, slots=True)
class WatchCursor:
    """A place between two changes of what can be found; `watch_blocks` goes on behind it."""

    incarnation: int
    """The server process whose changes are counted."""
    sequence: int
    """Its changes that are known."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class BlockChanges:
    """News of the blocks that can be found; apply `unlisted_block_ids` before `listed`."""

    kind: ChangeKind
    """What is told."""
    cursor: WatchCursor | None
    """Where to go on when this is known; None within a snapshot, and where something was lost."""
    is_first: bool
    """Whether this is the first part of a snapshot."""
    unlisted_block_ids: NDArray[np.int64]
    """Blocks that cannot be found any more, ``[m]``."""
    listed: BlockRefs
    """Blocks that can be found, ``[n]``."""
    prefix_hashes: tuple[bytes, ...]
    """The hash that each of them is found by, ``[n]``."""
    namespaces: tuple[str, ...]
    """Where its hash is, ``[n]``."""

    def __repr__(self) -> str:
        place = "" if self.cursor is None else f" up to {self.cursor.sequence}"
        counts = f"{len(self.listed)} listed, {len(self.unlisted_block_ids)} unlisted"
        return f"<BlockChanges {self.kind.name}{place}: {counts}>"
