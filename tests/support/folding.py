"""Folds a pool's events into a snapshot, as a watcher would."""

from dataclasses import dataclass, field

from statepool_server.events import Event, EventKind


@dataclass
class Folded:
    """What a watcher knows who heard every event."""

    generations: dict[int, int] = field(default_factory=dict)
    references: dict[int, dict[int, int]] = field(default_factory=dict)
    names: dict[int, tuple[str, bytes]] = field(default_factory=dict)
    quarantined: set[int] = field(default_factory=set)
    sessions: dict[int, tuple[int, str]] = field(default_factory=dict)
    sequence: int = 0

    def apply(self, event: Event) -> None:
        """Takes one event in."""
        assert event.sequence == self.sequence + 1
        self.sequence = event.sequence
        if event.kind is EventKind.SESSION_OPENED:
            self.sessions[event.session_id] = (event.epoch, event.owner_key)
        elif event.kind in (EventKind.SESSION_DELETED, EventKind.SESSION_EXPIRED):
            del self.sessions[event.session_id]
        for row, block in enumerate(event.block_ids.tolist()):
            self._apply_row(event, row, block, event.generations.tolist()[row])

    def _apply_row(self, event: Event, row: int, block: int, generation: int) -> None:
        held = self.references.setdefault(block, {})
        if event.kind in (EventKind.ALLOCATED, EventKind.FREED):
            assert not held
            self.generations[block] = generation
        assert self.generations[block] == generation
        if event.kind in (EventKind.ALLOCATED, EventKind.RETAINED):
            held[event.session_id] = held.get(event.session_id, 0) + 1
        elif event.kind is EventKind.RELEASED:
            held[event.session_id] -= 1
            if not held[event.session_id]:
                del held[event.session_id]
        elif event.kind is EventKind.COMMITTED:
            self.names[block] = (event.namespace, event.prefix_hashes[row])
        elif event.kind is EventKind.UNLISTED:
            del self.names[block]
        elif event.kind is EventKind.QUARANTINED:
            self.quarantined.add(block)
        elif event.kind is EventKind.CLEARED:
            self.quarantined.remove(block)

    def snapshot(self) -> dict[int, tuple[int, dict[int, int], tuple[str, bytes] | None]]:
        """Gives generation, references by session and name of every block that was ever allocated."""
        return {
            block: (generation, self.references[block], self.names.get(block))
            for block, generation in self.generations.items()
        }
