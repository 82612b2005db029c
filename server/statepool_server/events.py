"""What changed, as columns: folding the events of a pool gives its snapshot.

Blocks start blank at generation 0, with no reference and no name. What is not told: pins (they end by themselves) and
renewed leases (every owner sends many a second).
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from statepool_server.recency import Ids

NO_IDS: Ids = np.empty(0, np.int64)
"""No blocks."""


class EventKind(StrEnum):
    """What happened to the blocks or the session of an event."""

    ALLOCATED = "allocated"
    """Blank blocks got their first reference, by the session; their generations are new."""
    RETAINED = "retained"
    """The session has one more reference per row."""
    RELEASED = "released"
    """The session has one reference less per row."""
    FREED = "freed"
    """The blocks are blank; their generations are new. No session: the last use may have been anybody's."""
    COMMITTED = "committed"
    """The blocks are immutable and can be found by their hashes."""
    UNLISTED = "unlisted"
    """The blocks can no longer be found. No session: making room does it as well."""
    QUARANTINED = "quarantined"
    """One more fence is around the blocks: the session lost them while attached processes may still write them; or,
    with no session, their bytes have changed since they were committed."""
    CLEARED = "cleared"
    """The blocks have left quarantine. No session."""
    SESSION_OPENED = "session_opened"
    """The session exists, or was taken over: its epoch is new."""
    SESSION_DELETED = "session_deleted"
    """The session was deleted by its owner; its references were released before."""
    SESSION_EXPIRED = "session_expired"
    """The session's lease ran out; its references were released before."""


EVERY_KIND = frozenset(EventKind)
"""All that can happen."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Event:
    """One change of many blocks, or of a session."""

    sequence: int
    """Counts the events that the listener is told from 1, without a gap."""
    kind: EventKind
    """What happened."""
    session_id: int
    """The session whose doing it was, or which changed; 0: none."""
    epoch: int
    """The session's epoch; 0: none."""
    owner_key: str
    """The session's owner key; empty: none."""
    block_ids: Ids
    """Blocks, ``[n]``."""
    generations: Ids
    """Their generations after the change, ``[n]``."""
    namespace: str
    """Namespace of the hashes; for COMMITTED."""
    prefix_hashes: tuple[bytes, ...]
    """Hash of each block; for COMMITTED."""
