"""What a caller asks of an engine step, as columns that are well formed; what they mean is checked by the pool."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from statepool.refs import BlockRefs
from statepool_server.sequences.tables import NO_INTS, Ints


def _no_ints() -> Ints:
    return NO_INTS


def _column(value: int) -> Ints:
    column = np.array([value], np.int64)
    column.flags.writeable = False
    return column


@dataclass(frozen=True, slots=True, eq=False)
class Commits:
    """Results of forward passes."""

    sequence_ids: Ints | None = field(default_factory=_no_ints)
    """Sequences, ``[n]``; None: the running list."""
    accepted_tokens: Ints = field(default_factory=_no_ints)
    """Accepted tokens, ``[n]`` or ``[1]``."""
    hash_rows: Ints = field(default_factory=_no_ints)
    """Rows with a prefix hash, ascending, ``[h]``."""
    boundary_tokens: Ints = field(default_factory=_no_ints)
    """Boundary that each of them has reached, ``[h]``."""
    prefix_hashes: Sequence[bytes] = ()
    """Their hashes, ``[h]``."""


@dataclass(frozen=True, slots=True, eq=False)
class Admissions:
    """Sequences to begin."""

    sequence_ids: Ints = field(default_factory=_no_ints)
    """Ids, ``[n]``."""
    prompt_tokens: Ints = field(default_factory=_no_ints)
    """Tokens known, ``[n]``."""
    max_hit_tokens: Ints = field(default_factory=_no_ints)
    """Most tokens that a hit may cover, ``[n]``."""
    hash_offsets: Ints = field(default_factory=lambda: np.zeros(1, np.int64))
    """Start of each row's hashes and the end of the last, ``[n + 1]``."""
    prefix_hashes: Sequence[bytes] = ()
    """Hashes of all rows."""
    namespaces: Sequence[str] = ()
    """Namespace of each row, ``[n]``."""
    import_rows: Ints = field(default_factory=_no_ints)
    """Rows that begin with an imported state, ascending, ``[i]``."""
    imported_tokens: Ints = field(default_factory=_no_ints)
    """Tokens that each imported state has seen, ``[i]``."""
    imported_blocks: BlockRefs = field(default_factory=BlockRefs.empty)
    """Blocks that hold them, ``[i]``."""

    def __len__(self) -> int:
        return len(self.sequence_ids)

    def first(self, count: int) -> "Admissions":
        """Selects the first rows."""
        imports = int(np.searchsorted(self.import_rows, count))
        return Admissions(
            self.sequence_ids[:count],
            self.prompt_tokens[:count],
            self.max_hit_tokens[:count],
            self.hash_offsets[: count + 1],
            self.prefix_hashes[: int(self.hash_offsets[count])],
            self.namespaces[:count],
            self.import_rows[:imports],
            self.imported_tokens[:imports],
            self.imported_blocks[:imports],
        )


@dataclass(frozen=True, slots=True, eq=False)
class Schedules:
    """Forward passes to come."""

    sequence_ids: Ints | None = field(default_factory=_no_ints)
    """Sequences, ``[n]``; None: the running list."""
    num_tokens: Ints = field(default_factory=_no_ints)
    """Tokens of the pass, drafts included, ``[n]`` or ``[1]``."""
    num_draft_tokens: Ints = field(default_factory=_no_ints)
    """Drafted tokens among them, ``[n]`` or ``[1]``."""


COMMIT_EACH = Commits(None, _column(1))
"""Each running sequence has accepted one token: what most steps say, known by its identity."""
DECODE_EACH = Schedules(None, _column(1), _column(0))
"""Each running sequence decodes one token; as `COMMIT_EACH`."""


ALL_ROOM = 2**62
"""Room that no step can fill."""


class StepRequest(NamedTuple):
    """One engine step; as every step makes one, no dataclass, which takes three times as long."""

    step: int
    """Its number."""
    settled_step: int = 0
    """Every step up to this one is settled."""
    by_worker: bool = False
    """Whether the attached worker runs the copies, not the server."""
    partial_admission: bool = False
    """Whether to admit only as many as there are blocks for."""
    commits: Commits = Commits()
    """Results of forward passes."""
    finishes: Ints = NO_INTS
    """Sequences to end, ``[n]``."""
    admissions: Admissions = Admissions()
    """Sequences to begin."""
    schedules: Schedules = Schedules()
    """Forward passes to come."""
    block_room: int = ALL_ROOM
    """How many more blocks the session may hold after the step than before; below 0: it must give some back."""

    def with_admissions(self, count: int) -> "StepRequest":
        """Leaves out all but the first admissions; schedules of the others stay and are passed over."""
        return self._replace(admissions=self.admissions.first(count))
