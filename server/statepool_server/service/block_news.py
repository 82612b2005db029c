"""What can be found, and what changes of it: collected for a moment, and written down once for all who watch."""

import asyncio
import weakref
from collections.abc import Sequence

import numpy as np

from statepool.refs import BlockRefs
from statepool.v1 import pool_pb2 as pb
from statepool.wire import refs_to_wire
from statepool_server.events import Event, EventKind
from statepool_server.pool import Pool
from statepool_server.service.event_log import EventLog

BATCH_SECONDS = 0.005
"""How long changes are collected: what is taken back within it is never told, and nobody is woken more often."""
BATCH_ROWS = 4096
"""Rows of a batch, and of a part of a snapshot: about a millisecond of encoding."""

_KINDS = (EventKind.COMMITTED, EventKind.UNLISTED)


class Snapshot:
    """What could be found at a moment; written down part by part, as the first of its readers comes to it.

    Attributes:
        sequence: Number of the batch that it follows.
        part_count: Parts, at least one.
    """

    def __init__(self, sequence: int, pool: Pool) -> None:
        """Copies the prefix index."""
        self.sequence = sequence
        self._columns = columns = pool.prefixes.columns()
        self._refs = pool.blocks.refs(columns.block_ids)
        self.part_count = max(1, -(-len(self._refs) // BATCH_ROWS))
        self._parts: list[bytes] = []

    def part(self, index: int) -> bytes:
        """Writes a part down, or gives what was written; a reader comes to one after the other."""
        if index == len(self._parts):
            self._parts.append(self._encode(index))
        return self._parts[index]

    def _encode(self, index: int) -> bytes:
        rows = slice(index * BATCH_ROWS, (index + 1) * BATCH_ROWS)
        changes = pb.BlockChanges(
            kind=pb.BlockChanges.KIND_SNAPSHOT,
            sequence=self.sequence,
            is_first=index == 0,
            is_last=index == self.part_count - 1,
        )
        columns = self._columns
        namespaces = [columns.names[number] for number in columns.numbers[rows].tolist()]
        _list(changes, self._refs[rows], columns.prefix_hashes[rows].tolist(), namespaces)
        return encoded(changes)


class BlockNews:
    """Changes of what can be found, from the first watcher on.

    Attributes:
        log: The latest batches of changes.
        rows: Rows that were told.
    """

    def __init__(self, pool: Pool, max_bytes: int) -> None:
        """Begins without listening: as long as nobody has ever watched, changes cost nothing.

        Args:
            pool: The pool.
            max_bytes: Bytes of the latest batches that are kept.
        """
        self.log = EventLog(max_bytes)
        self.rows = 0
        self._pool = pool
        self._is_listening = False
        self._listed: dict[int, tuple[int, str, bytes]] = {}
        self._unlisted: dict[int, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._told = asyncio.Event()
        self._snapshot: weakref.ref[Snapshot] | None = None

    def knows(self, sequence: int) -> bool:
        """Tells whether a batch, and so a place behind it, has been."""
        return self._is_listening and sequence <= self.log.last

    def listen(self) -> None:
        """Begins to listen, unless it has begun."""
        if not self._is_listening:
            self._pool.listen(self._hear, _KINDS)
            self._is_listening = True

    def snapshot(self) -> Snapshot:
        """Returns a snapshot of the prefix index; readers share it while the log still holds every later change."""
        snapshot = self._snapshot() if self._snapshot is not None else None
        if snapshot is None or not self.log.reaches(snapshot.sequence):
            self._tell()
            snapshot = Snapshot(self.log.last, self._pool)
            self._snapshot = weakref.ref(snapshot)
        return snapshot

    async def until_told(self) -> None:
        """Waits for the next batch."""
        await self._told.wait()

    def _hear(self, event: Event) -> None:
        ids = event.block_ids.tolist()
        if event.kind is EventKind.UNLISTED:
            for block in ids:
                self._listed.pop(block, None)
            self._unlisted.update(dict.fromkeys(ids))
        else:
            for block, generation, value in zip(ids, event.generations.tolist(), event.prefix_hashes, strict=True):
                self._listed[block] = generation, event.namespace, value
        if len(self._listed) + len(self._unlisted) >= BATCH_ROWS:
            self._tell()
        elif ids and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(BATCH_SECONDS, self._tell)

    def _tell(self) -> None:
        """Writes down what was collected, and wakes those who wait for it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._listed and not self._unlisted:
            return
        self.rows += len(self._listed) + len(self._unlisted)
        unlisted, listed = list(self._unlisted), list(self._listed.items())
        self._unlisted, self._listed = {}, {}
        for start in range(0, len(unlisted) + len(listed), BATCH_ROWS):
            stop, passed = start + BATCH_ROWS, len(unlisted)
            rows = slice(max(0, start - passed), max(0, stop - passed))
            self.log.append(self._events(unlisted[start:stop], listed[rows]))
        self._told.set()
        self._told = asyncio.Event()

    def _events(self, unlisted: list[int], listed: list[tuple[int, tuple[int, str, bytes]]]) -> bytes:
        changes = pb.BlockChanges(
            kind=pb.BlockChanges.KIND_EVENTS, sequence=self.log.last + 1, unlisted_block_ids=unlisted
        )
        if listed:
            generations, namespaces, values = zip(*(facts for _, facts in listed), strict=True)
            ids = np.array([block for block, _ in listed], np.int64)
            _list(changes, BlockRefs(ids, np.array(generations, np.int64)), values, namespaces)
        return encoded(changes)


def encoded(changes: pb.BlockChanges) -> bytes:
    """Writes changes as a response of their own; such bytes, one after the other, are a response with all of them."""
    return pb.WatchBlocksResponse(changes=[changes]).SerializeToString()


def _list(changes: pb.BlockChanges, refs: BlockRefs, prefix_hashes: Sequence[bytes], namespaces: Sequence[str]) -> None:
    changes.listed.CopyFrom(refs_to_wire(refs))
    changes.prefix_hashes.extend(prefix_hashes)
    indices = {name: index for index, name in enumerate(dict.fromkeys(namespaces))}
    changes.namespaces.extend(indices)
    if len(indices) > 1:
        changes.namespace_indices.extend(map(indices.__getitem__, namespaces))
