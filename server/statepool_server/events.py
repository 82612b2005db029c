"""What changed, as columns: folding the events of a pool gives its snapshot."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray


class EventKind(StrEnum):
    """What happened to the blocks or the session of an event."""

    ALLOCATED = "allocated"
    """A free block got its first reference; its generation is new."""
    RETAINED = "retained"
    """One more reference per row."""
    RELEASED = "released"
    """One reference less per row."""
    FREED = "freed"
    """The block is free; its generation is new."""
    COMMITTED = "committed"
    """The block holds a prefix hash and is immutable."""
    UNLISTED = "unlisted"
    """The block's hash is no longer found."""
    SESSION_OPENED = "session_opened"
    """A session exists, or was taken over (its epoch is new)."""
    SESSION_CLOSED = "session_closed"
    """A session was deleted or has expired."""


@dataclass(frozen=True, slots=True)
class Event:
    """One change; which fields count depends on the kind."""

    kind: EventKind
    """What happened."""
    session_id: int = 0
    """The session whose doing it was, or which changed; 0: none."""
    epoch: int = 0
    """The session's epoch, for SESSION_OPENED."""
    block_ids: NDArray[np.int64] | None = None
    """Blocks, ``[n]``."""
    generations: NDArray[np.int64] | None = None
    """Generations after the change, ``[n]``; for ALLOCATED and FREED."""
    namespace: str = ""
    """Namespace of the hashes, for COMMITTED."""
    prefix_hashes: tuple[bytes, ...] = ()
    """Hash of each block, for COMMITTED."""
