"""What waits until a step is settled: blocks that were dropped, and states that are to be found."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from statepool_server.sequences.tables import Ints


@dataclass(frozen=True, slots=True, eq=False)
class Publication:
    """States that stand at boundaries and are to be found by their hashes, once their steps are settled."""

    blocks: Ints
    """Block of each, ``[n]``."""
    namespaces: Sequence[str]
    """Namespace of each, ``[n]``."""
    prefix_hashes: Sequence[bytes]
    """Hash of each, ``[n]``."""

    def __len__(self) -> int:
        return len(self.blocks)

    def take(self, rows: Ints) -> "Publication":
        """Selects rows."""
        chosen = rows.tolist()
        return Publication(
            self.blocks[rows], [self.namespaces[r] for r in chosen], [self.prefix_hashes[r] for r in chosen]
        )


NOTHING = Publication(np.empty(0, np.int64), (), ())
"""No states."""


@dataclass(frozen=True, slots=True, eq=False)
class UnsettledState:
    """What waits at a moment, each with its step."""

    publications: list[tuple[int, Publication]]
    """States that are to be found."""
    drops: list[tuple[int, Ints]]
    """Blocks that were dropped."""


class Unsettled:
    """Publications and dropped blocks of one session, each with the step that must be settled first."""

    def __init__(self) -> None:
        self._publications: deque[tuple[int, Publication]] = deque()
        self._drops: deque[tuple[int, Ints]] = deque()

    def __len__(self) -> int:
        return len(self._publications) + len(self._drops)

    def publish_later(self, steps: Ints, publication: Publication) -> None:
        """Keeps states until the step of each is settled."""
        for step in np.unique(steps).tolist():
            self._publications.append((step, publication.take(np.flatnonzero(steps == step))))

    def drop_later(self, steps: Ints, blocks: Ints) -> None:
        """Keeps the references to blocks until the step of each is settled."""
        for step in np.unique(steps).tolist():
            self._drops.append((step, blocks[steps == step]))

    def due_publications(self, settled_step: int) -> list[Publication]:
        """Lists the states whose steps are settled, in the order in which they came."""
        return [publication for step, publication in self._publications if step <= settled_step]

    def due_drops(self, settled_step: int) -> list[Ints]:
        """Lists the blocks whose steps are settled, in the order in which they came."""
        return [blocks for step, blocks in self._drops if step <= settled_step]

    def forget(self, settled_step: int) -> None:
        """Takes out what is due."""
        self._publications = deque(item for item in self._publications if item[0] > settled_step)
        self._drops = deque(item for item in self._drops if item[0] > settled_step)

    def dropped_blocks(self) -> Ints:
        """Lists all blocks whose references are kept."""
        return np.concatenate([np.empty(0, np.int64), *(blocks for _, blocks in self._drops)])

    def dump(self) -> UnsettledState:
        """Shows everything."""
        return UnsettledState(list(self._publications), list(self._drops))

    def load(self, state: UnsettledState) -> None:
        """Takes a state over."""
        self._publications, self._drops = deque(state.publications), deque(state.drops)

    def facts(self) -> Iterator[tuple[object, ...]]:
        """Tells everything as plain values, in a fixed order."""
        for step, publication in self._publications:
            yield step, publication.blocks.tolist(), list(publication.namespaces), list(publication.prefix_hashes)
        for step, blocks in self._drops:
            yield step, blocks.tolist()
