"""What an engine step will do, worked out and checked without changing anything."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from statepool_server.sequences.requests import StepRequest
from statepool_server.sequences.rules import NO_MOVES, Growth, Moves
from statepool_server.sequences.table import SequenceTable
from statepool_server.sequences.tables import NO_INTS, NULL, Ints
from statepool_server.sequences.unsettled import NOTHING, Publication

_NO_MARKS = np.empty(0, np.bool_)


def no_ints() -> Ints:
    """Gives an empty column."""
    return NO_INTS


@dataclass(frozen=True, slots=True, eq=False)
class Drops:
    """Blocks that sequences give up."""

    blocks: Ints
    """Blocks, one row per reference."""
    steps: Ints
    """Step that must be settled before each can be reused."""


NO_DROPS = Drops(NO_INTS, NO_INTS)
"""Nothing is given up."""


@dataclass(slots=True, eq=False)
class StepPlan:
    """A step worked out: counters as they will be, and what happens to which block.

    Working columns are copies of the table's, so that each stage sees what the stages before it do.
    """

    request: StepRequest
    """What was asked."""
    table: SequenceTable
    """The session's sequences; not changed."""
    settled_step: int
    """Every step up to this one is settled."""
    num_computed: Ints
    """Working column, ``[slots]``."""
    num_accepted: Ints
    """Working column, ``[slots]``."""
    drafts: Ints
    """Working column, ``[slots]``."""
    unsettled_step: Ints
    """Working column, ``[slots]``."""
    running_ids: Ints
    """Ids of the running list, as it will be."""
    running_slots: Ints
    """Its slots."""

    # Settlement
    due_publications: list[Publication] = field(default_factory=list)
    """States whose steps are settled now."""
    due_drops: Ints = field(default_factory=no_ints)
    """Blocks that were dropped before and whose steps are settled now."""

    # Commits
    committed_slots: Ints = field(default_factory=no_ints)
    """Sequences whose passes are committed."""
    post_copies: Moves = field(default_factory=lambda: NO_MOVES)
    """Copies of the commits."""
    publication: Publication = NOTHING
    """States that stand at boundaries and have hashes."""
    publication_steps: Ints = field(default_factory=no_ints)
    """Step that must be settled before each can be found; 0: the server's own copy must be done."""

    # Finishes
    finished_slots: Ints = field(default_factory=no_ints)
    """Sequences that end."""
    finish_drops: Drops = field(default_factory=lambda: NO_DROPS)
    """Their blocks."""

    # Admissions
    admitted_slots: Ints = field(default_factory=no_ints)
    """Slots of sequences that begin."""
    admitted_blocks: Ints = field(default_factory=no_ints)
    """Block that holds the state of each, or `NULL`."""
    is_import: NDArray[np.bool_] = field(default_factory=lambda: _NO_MARKS)
    """Whether that block was imported, so that the session's reference passes to the sequence."""

    # Schedules
    scheduled_slots: Ints = field(default_factory=no_ints)
    """Sequences that are scheduled."""
    scheduled_rows: Ints | None = None
    """Rows of the request that these are; None: all."""
    written: Ints = field(default_factory=no_ints)
    """Tokens up to the first draft, ``[scheduled]``."""
    num_drafts: Ints = field(default_factory=no_ints)
    """Drafts of each, ``[scheduled]`` or ``[1]``."""
    changed: Ints = field(default_factory=no_ints)
    """Which of them leave their running column or retire a column, ``[changed]``."""
    growth: Growth | None = None
    """Their tables."""
    retire_drops: Drops = field(default_factory=lambda: NO_DROPS)
    """Blocks that they retire."""
    new_blocks: Ints = field(default_factory=no_ints)
    """Blocks that each needs, ``[changed]``."""

    @property
    def hit_blocks(self) -> Ints:
        """Blocks that admissions found, one row per reference."""
        if not len(self.admitted_blocks):
            return NO_INTS
        hits: Ints = self.admitted_blocks[(self.admitted_blocks != NULL) & ~self.is_import]
        return hits
