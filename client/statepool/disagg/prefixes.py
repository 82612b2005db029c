"""What servers have told of their prefixes, so that a router looks them up in memory."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from statepool.backoff import Backoff
from statepool.errors import EventCursorCompactedError, IncarnationMismatchError, StatepoolError
from statepool.watching import ChangeKind

if TYPE_CHECKING:
    from statepool.watching import BlockChanges, WatchCursor


@dataclass(frozen=True, slots=True)
class DirectoryHit:
    """The deepest prefix that a server has told of."""

    server: str
    """The server, by the target under which it is followed."""
    hash_index: int
    """Index of the hash in the list that was asked for."""
    prefix_hash: bytes
    """That hash."""
    staleness: float
    """Seconds since the server was heard; it says something at least every second."""


@dataclass(frozen=True, slots=True)
class FollowedServer:
    """How well a server is known at a moment."""

    is_current: bool
    """Whether all that it has told is known, and its watch is open."""
    staleness: float | None
    """Seconds since it was heard; None: never."""
    prefix_count: int
    """Prefixes that it has."""
    cursor: WatchCursor | None
    """Up to where its changes are known; None: a snapshot is needed."""
    error: StatepoolError | None
    """Why its watch is not open; None: it is, or nothing has failed yet."""


class KnownPrefixes:
    """The prefixes of one server: folds what a watch of it yields.

    Only whole snapshots count: until one has come to its end, what was known before is. To be changed by one thread;
    others may look up.
    """

    def __init__(self) -> None:
        self._names: dict[int, tuple[str, bytes]] = {}
        self._blocks: dict[str, dict[bytes, int]] = {}
        self._coming: KnownPrefixes | None = None

    def __len__(self) -> int:
        return len(self._names)

    def deepest(self, namespace: str, prefix_hashes: Sequence[bytes]) -> int:
        """Finds the index of the last hash that is known; -1: none is."""
        known: Mapping[bytes, int] = self._blocks.get(namespace, {})
        return next((row for row in range(len(prefix_hashes) - 1, -1, -1) if prefix_hashes[row] in known), -1)

    def apply(self, changes: BlockChanges) -> None:
        """Takes changes in."""
        if changes.kind is ChangeKind.EVENTS:
            self._fold(changes)
        elif changes.kind is ChangeKind.SNAPSHOT:
            if changes.is_first or self._coming is None:
                self._coming = KnownPrefixes()
            self._coming._fold(changes)  # noqa: SLF001 - one of us
            if changes.cursor is not None:
                self._names, self._blocks = self._coming._names, self._coming._blocks  # noqa: SLF001
                self._coming = None

    def _fold(self, changes: BlockChanges) -> None:
        for block in changes.unlisted_block_ids.tolist():
            self._remove(block)
        rows = zip(changes.listed.block_ids.tolist(), changes.namespaces, changes.prefix_hashes, strict=True)
        for block, namespace, value in rows:
            self._remove(block)
            self._names[block] = namespace, value
            self._blocks.setdefault(namespace, {})[value] = block

    def _remove(self, block: int) -> None:
        """Forgets a block, unless it came and went between two tellings and was never known."""
        if block not in self._names:
            return
        namespace, value = self._names.pop(block)
        known = self._blocks[namespace]
        if known[value] == block:
            del known[value]
        if not known:
            del self._blocks[namespace]


class Followed:
    """One server that is followed, whichever way its changes come.

    Attributes:
        target: Where it is.
        cursor: Where its next watch begins; None: with a snapshot.
        is_current: Whether all that it has told is known, and its watch is open.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.cursor: WatchCursor | None = None
        self.is_current = False
        self._prefixes = KnownPrefixes()
        self._heard_at: float | None = None
        self._error: StatepoolError | None = None
        self._backoff = Backoff()

    def heard(self, changes: BlockChanges) -> None:
        """Takes what it has told in."""
        self._prefixes.apply(changes)
        self._heard_at = time.monotonic()
        self._error = None
        self._backoff.worked()
        if changes.kind is ChangeKind.LOST:
            self.cursor, self.is_current = None, False
        elif changes.cursor is not None:
            self.cursor, self.is_current = changes.cursor, True

    def broke(self, error: StatepoolError) -> float:
        """Notes why its watch has ended.

        Returns:
            Seconds until it is to be watched again: behind the cursor, where it still can tell what came behind it.
        """
        self._error, self.is_current = error, False
        if isinstance(error, EventCursorCompactedError | IncarnationMismatchError):
            self.cursor = None
        return self._backoff.broke()

    def died(self, error: Exception) -> None:
        """Notes that it is followed no longer, for what nobody has foreseen."""
        self.broke(StatepoolError(f"it is followed no longer: {error!r}"))

    def lookup(self, namespace: str, prefix_hashes: Sequence[bytes], max_staleness: float) -> DirectoryHit | None:
        """Finds its deepest prefix, unless it has not been heard for too long."""
        staleness = self._staleness()
        if staleness is None or staleness > max_staleness:
            return None
        row = self._prefixes.deepest(namespace, prefix_hashes)
        return DirectoryHit(self.target, row, prefix_hashes[row], staleness) if row >= 0 else None

    def facts(self) -> FollowedServer:
        """Tells how well it is known."""
        return FollowedServer(self.is_current, self._staleness(), len(self._prefixes), self.cursor, self._error)

    def _staleness(self) -> float | None:
        return None if self._heard_at is None else time.monotonic() - self._heard_at


class Directory:
    """The prefixes of several servers, as far as they have told of them.

    What is found was there a moment ago: `lookup_prefix` at that server says what is there, and holds it.
    """

    def __init__(self) -> None:
        self._followed: dict[str, Followed] = {}

    @property
    def servers(self) -> dict[str, FollowedServer]:
        """How well each server is known, by target."""
        return {target: followed.facts() for target, followed in list(self._followed.items())}

    @property
    def is_current(self) -> bool:
        """Whether all servers are followed without a gap."""
        return all(followed.is_current for followed in list(self._followed.values()))

    def lookup(
        self, prefix_hashes: Sequence[bytes], *, namespace: str = "", max_staleness: float = 5.0
    ) -> list[DirectoryHit]:
        """Finds the deepest known prefix at each server, in memory.

        Args:
            prefix_hashes: From the shortest prefix to the longest, as `statepool.prefix_hashes` makes them.
            namespace: Where to look.
            max_staleness: Leaves out servers that were not heard for so many seconds.

        Returns:
            A hit for each server that has one, the deepest first.
        """
        found = (followed.lookup(namespace, prefix_hashes, max_staleness) for followed in list(self._followed.values()))
        return sorted((hit for hit in found if hit is not None), key=lambda hit: -hit.hash_index)

    def _lacking(self) -> str:
        """Lists the servers that are not followed without a gap, and why."""
        return ", ".join(
            f"{target} ({facts.error or 'nothing heard yet'})"
            for target, facts in self.servers.items()
            if not facts.is_current
        )
