"""Folds a pool's events into a snapshot, as a watcher would."""

from dataclasses import dataclass, field

from statepool_server.events import Event, EventKind


@dataclass
class Folded:
    """What a watcher knows who heard every event."""

    generations: dict[int, int] = field(default_factory=dict)
    references: dict[int, int] = field(default_factory=dict)
    names: dict[int, tuple[str, bytes]] = field(default_factory=dict)
    sessions: dict[int, int] = field(default_factory=dict)

    def apply(self, event: Event) -> None:
        """Takes one event in."""
        if event.kind is EventKind.SESSION_OPENED:
            self.sessions[event.session_id] = event.epoch
        elif event.kind is EventKind.SESSION_CLOSED:
            del self.sessions[event.session_id]
        assert event.block_ids is not None
        assert event.generations is not None
        for row, (block, generation) in enumerate(
            zip(event.block_ids.tolist(), event.generations.tolist(), strict=True)
        ):
            self._apply_row(event, row, block, generation)

    def _apply_row(self, event: Event, row: int, block: int, generation: int) -> None:
        self.generations[block] = generation
        known = self.references.get(block, 0)
        if event.kind in (EventKind.ALLOCATED, EventKind.RETAINED):
            self.references[block] = known + 1
        elif event.kind is EventKind.RELEASED:
            self.references[block] = known - 1
        elif event.kind is EventKind.FREED:
            self.references[block] = 0
        elif event.kind is EventKind.COMMITTED:
            self.names[block] = (event.namespace, event.prefix_hashes[row])
        elif event.kind is EventKind.UNLISTED:
            del self.names[block]

    def snapshot(self) -> dict[int, tuple[int, int, tuple[str, bytes] | None]]:
        """Gives generation, references and name of every block that was ever allocated."""
        return {
            block: (generation, self.references[block], self.names.get(block))
            for block, generation in self.generations.items()
        }
