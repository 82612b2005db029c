"""The changes of a pool, each with its events. What they need was checked before, so none can fail half-way."""

from collections.abc import Callable, Collection, Sequence

import numpy as np

from statepool.refs import BlockRefs
from statepool_server.answers import CommitResult, Pin
from statepool_server.blocks import BlockTable, Counts
from statepool_server.events import EVERY_KIND, NO_IDS, Event, EventKind
from statepool_server.holdings import Holdings
from statepool_server.prefix import PrefixIndex
from statepool_server.recency import Ids
from statepool_server.sessions import Session, SessionTable
from statepool_server.tally import Tally

Listener = Callable[[Event], None]
"""Hears every change, in order, after it; must not call the pool."""


class Changes:
    """Changes blocks, holdings, prefixes and sessions together, so that they always tell one story."""

    def __init__(
        self,
        blocks: BlockTable,
        holdings: Holdings,
        prefixes: PrefixIndex,
        sessions: SessionTable,
        tally: Tally,
        listener: Listener | None,
    ) -> None:
        self._blocks = blocks
        self._holdings = holdings
        self._prefixes = prefixes
        self._sessions = sessions
        self._tally = tally
        self._listener = listener
        self._told = EVERY_KIND if listener is not None else frozenset()
        self._sequence = 0

    def listen(self, listener: Listener, kinds: Collection[EventKind]) -> None:
        """Has a listener hear the changes of some kinds from now on, in place of whoever heard them before."""
        self._listener, self._told, self._sequence = listener, frozenset(kinds), 0

    def opened(self, session: Session) -> None:
        """Tells that a session was opened or taken over."""
        if session.epoch == 1:
            self._tally.opened_sessions += 1
        else:
            self._tally.taken_over_sessions += 1
        self._tell(EventKind.SESSION_OPENED, session, NO_IDS)

    def close(self, session: Session, *, expired: bool) -> int:
        """Removes a session and drops all its references.

        Returns:
            References that were dropped.
        """
        ids = self._holdings.blocks_of(session)
        counts = self._holdings.count(session, ids)
        self.drop(session, ids, counts)
        self._sessions.close(session, expired=expired)
        self._tally.expired_sessions += expired
        self._tally.deleted_sessions += not expired
        self._tell(EventKind.SESSION_EXPIRED if expired else EventKind.SESSION_DELETED, session, NO_IDS)
        return int(counts.sum())

    def allocate(self, session: Session, count: int) -> BlockRefs:
        """Hands out blocks with one reference each, evicting committed ones where blank ones are too few."""
        missing = count - self._blocks.free_count
        if missing > 0:
            victims = self._blocks.evictable.pop(missing)
            self._unlist(victims, idle=victims)
            self._tally.evicted_blocks += missing
        refs = self._blocks.take(count)
        self._holdings.give(session, refs.block_ids)
        self._tally.allocated_blocks += count
        self._tell(EventKind.ALLOCATED, session, refs.block_ids)
        return refs

    def retain(self, session: Session, ids: Ids) -> None:
        """Adds one reference per row."""
        self._holdings.add(session, ids)
        self._blocks.retain(ids)
        self._tell(EventKind.RETAINED, session, ids)

    def drop(self, session: Session, ids: Ids, counts: Counts) -> None:
        """Drops references of distinct blocks, as many of each as counted."""
        self._holdings.drop(session, ids, counts)
        if EventKind.RELEASED in self._told:
            self._tell(EventKind.RELEASED, session, np.repeat(ids, counts))
        self._tell_freed(self._blocks.drop(ids, counts))

    def commit(self, session: Session, refs: BlockRefs, namespace: str, prefix_hashes: Sequence[bytes]) -> CommitResult:
        """Lists the hashes that are not known yet, and makes their blocks immutable."""
        ids, known = refs.block_ids, len(self._prefixes)
        holders = self._prefixes.insert(namespace, prefix_hashes, ids)
        self._tally.commits += len(self._prefixes) - known
        if EventKind.COMMITTED in self._told:
            fresh = ((holders == ids) & ~self._blocks.listed[ids]).nonzero()[0]
            values = tuple(prefix_hashes[row] for row in fresh.tolist())
            self._tell(EventKind.COMMITTED, session, ids[fresh], namespace, values)
        if holders is ids:
            self._blocks.commit(ids)
            return CommitResult(refs, NO_IDS)
        self._blocks.commit(ids[holders == ids])
        duplicates = (holders != ids).nonzero()[0]
        self._tally.duplicate_commits += len(duplicates)
        return CommitResult(self._blocks.refs(holders), duplicates)

    def unlist(self, ids: Ids) -> Ids:
        """Takes listed blocks out of the prefix index.

        Returns:
            Those that became blank by it.
        """
        self._blocks.evictable.discard(ids)
        idle = self._blocks.idle(ids)
        self._unlist(ids, idle)
        return idle

    def pin(self, sources: Ids, writers: Ids) -> Pin:
        """Marks blocks as being read, or written (and maybe read)."""
        readers = np.setdiff1d(sources, writers) if len(sources) else sources
        self._blocks.pin(readers, writers)
        return Pin(readers, writers)

    def unpin(self, pin: Pin) -> None:
        """Takes marks back, and releases blocks that lost their last reference meanwhile."""
        self._tell_freed(self._blocks.unpin(pin.readers, pin.writers))

    def quarantine(self, session: Session, ids: Ids) -> None:
        """Puts a fence around blocks that a session loses."""
        self._blocks.quarantine(ids)
        self._tell(EventKind.QUARANTINED, session, ids)

    def condemn(self, ids: Ids) -> None:
        """Puts a fence around distinct blocks whose bytes have changed, and takes them out of the prefix index."""
        self._blocks.condemn(ids)
        self._tell(EventKind.QUARANTINED, None, ids)
        self.unlist(ids[self._blocks.listed[ids]])

    def pardon(self) -> int:
        """Takes the fences of all condemned blocks away.

        Returns:
            Blocks that left quarantine.
        """
        return self.clear(self._blocks.pardon())

    def clear(self, ids: Ids) -> int:
        """Takes a fence away, and releases blocks that have no other and that nobody holds or uses.

        Returns:
            Blocks that left quarantine.
        """
        cleared = self._blocks.clear(ids)
        self._tell(EventKind.CLEARED, None, cleared)
        self._tell_freed(self._blocks.release(cleared))
        return len(cleared)

    def _unlist(self, ids: Ids, idle: Ids) -> None:
        self._prefixes.remove(ids)
        self._tell(EventKind.UNLISTED, None, ids)
        self._blocks.unlist(ids, idle)
        self._tell_freed(idle)

    def _tell_freed(self, ids: Ids) -> None:
        if len(ids):
            self._tell(EventKind.FREED, None, ids)

    def _tell(
        self,
        kind: EventKind,
        session: Session | None,
        ids: Ids,
        namespace: str = "",
        prefix_hashes: tuple[bytes, ...] = (),
    ) -> None:
        if self._listener is None or kind not in self._told:
            return
        self._sequence += 1
        self._listener(
            Event(
                sequence=self._sequence,
                kind=kind,
                session_id=session.session_id if session else 0,
                epoch=session.epoch if session else 0,
                owner_key=session.owner_key if session else "",
                block_ids=ids.copy(),
                generations=self._blocks.generations[ids],
                namespace=namespace,
                prefix_hashes=prefix_hashes,
            )
        )
