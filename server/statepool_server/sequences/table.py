"""The sequences of one session: counters and block tables as a struct of arrays over slots."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from statepool.errors import BadFieldError, SequenceNotFoundError, StateLostError
from statepool_server.sequences.tables import NEVER, NO_COLUMN, NO_INTS, Ints, Tables
from statepool_server.sequences.unsettled import Unsettled, UnsettledState

IDLE = -1
"""Drafts of a sequence without an outstanding step."""

_FEWEST_SLOTS = 16
_COLUMNS = (
    *("ids", "num_computed", "num_accepted", "running_start"),
    *("written", "drafts", "unsettled_step", "quiet_until"),
)


@dataclass(frozen=True, slots=True, eq=False)
class SequencesState:
    """The sequences of a session at a moment; columns as of `SequenceTable`."""

    slots: dict[int, int]
    """Slots by sequence id."""
    free: list[int]
    """Slots that are not in use, the next to be used last."""
    columns: dict[str, Ints]
    """The columns of counters by name, each ``[slots]``."""
    tables: Tables
    """Block tables, ``[slots]``."""
    namespaces: list[str]
    """Namespaces, ``[slots]``."""
    last_step: int
    """Number of the last step."""
    settled_step: int
    """Every step up to this one is settled."""
    digest: int
    """Digest of all decisions."""
    unsettled: UnsettledState
    """What waits."""
    running_ids: Ints
    """The running list."""
    running_slots: Ints
    """Its slots."""
    steady_steps: int
    """Steady steps that are left."""
    lost: list[int]
    """Slots of lost sequences, ascending."""


class SequenceTable:
    """Sequences by slot; a slot that is not in use holds nothing of meaning.

    Attributes:
        num_computed: Tokens that the state has seen, ``[slots]``.
        num_accepted: Accepted tokens of the last commit that were not shifted away, ``[slots]``.
        running_start: Token at which the running column starts, ``[slots]``; negative: never scheduled.
        written: Tokens that the outstanding step computes up to its first draft, ``[slots]``.
        drafts: Drafted tokens of the outstanding step, ``[slots]``, or `IDLE`.
        unsettled_step: Last step that reads or writes blocks of the sequence, ``[slots]``.
        quiet_until: A pass that ends after `running_start` and not after this token changes nothing in the table,
            ``[slots]``.
        tables: Block tables, ``[slots]``.
        namespaces: Namespace of the prefix hashes, ``[slots]``.
        last_step: Number of the last step that was applied.
        settled_step: Every step up to this one is settled.
        digest: Digest of everything that steps have decided.
        unsettled: What waits until steps are settled.
        running_ids: Ids of the running list.
        running_slots: Their slots.
        steady_steps: How many times each running sequence can decode a token before anything else happens.
    """

    def __init__(self, num_spec: int) -> None:
        self._num_spec = num_spec
        self._slots: dict[int, int] = {}
        self._free: list[int] = []
        self.ids = self._column()
        self.num_computed = self._column()
        self.num_accepted = self._column()
        self.running_start = self._column()
        self.written = self._column()
        self.drafts = self._column()
        self.unsettled_step = self._column()
        self.quiet_until = self._column()
        self.tables = Tables.blank(0, num_spec)
        self.namespaces: list[str] = []
        self.last_step = self.settled_step = self.digest = 0
        self.unsettled = Unsettled()
        self.running_ids = self.running_slots = self._column()
        self.steady_steps = 0
        self._lost: set[int] = set()
        self._lag = 0

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, sequence_id: int) -> bool:
        return sequence_id in self._slots

    def is_running(self, sequence_ids: Ints | None) -> bool:
        """Tells whether ids are those of the running list, in its order; None stands for it."""
        return sequence_ids is None or sequence_ids.tobytes() == self.running_ids.tobytes()

    def slots(self, sequence_ids: Ints, field: str, added: Mapping[int, int] = MappingProxyType({})) -> Ints:
        """Finds the slots of sequences.

        Args:
            sequence_ids: Sequences, ``[n]``.
            field: Request field that names them.
            added: Slots of sequences that are about to be added, in place of those of the same ids.

        Returns:
            Slots, ``[n]``.

        Raises:
            SequenceNotFoundError: There is no such sequence.
            BadFieldError: A sequence is named twice.
        """
        if not added and self.is_running(sequence_ids):
            return self.running_slots  # the same batch as in the step before, which is the common case
        found, named = self._slots.get, sequence_ids.tolist()
        if added:
            slots = np.array([added.get(sequence_id, found(sequence_id, -1)) for sequence_id in named], np.int64)
        else:
            slots = np.array([found(sequence_id, -1) for sequence_id in named], np.int64)
        missing = np.flatnonzero(slots < 0)
        if len(missing):
            row = int(missing[0])
            raise SequenceNotFoundError(
                f"{field}[{row}]: the session has no sequence {sequence_ids[row]}", field=field, row=row
            )
        _check_distinct(slots, field)
        return slots

    def lose(self, blocks: Ints) -> list[int]:
        """Notes that blocks do not hold what they should: the sequences in whose tables they stand are lost.

        Returns:
            Ids of these sequences, ascending.
        """
        slots = self.in_order()
        rows, _, named = self.tables.take(slots).entries()
        lost = slots[np.unique(rows[np.isin(named, blocks)])]
        self._lost.update(lost.tolist())
        self.steady_steps = 0
        ids: list[int] = self.ids[lost].tolist()
        return ids

    def check_not_lost(self, slots: Ints, field: str) -> None:
        """Refuses to go on with lost sequences.

        Args:
            slots: Slots of those that are to go on, ``[n]``.
            field: Request field whose rows they are.

        Raises:
            StateLostError: One is.
        """
        if not self._lost:
            return
        row = next((row for row, slot in enumerate(slots.tolist()) if slot in self._lost), None)
        if row is not None:
            raise StateLostError(
                f"{field}[{row}]: the state of sequence {self.ids[slots[row]]} is gone, it can only be finished",
                field=field,
                row=row,
            )

    def decode_each(self, step: int, settled_step: int) -> None:
        """Commits one token of each running sequence and schedules one more; `steady_steps` must be positive.

        Counts the step, and leaves the columns to `catch_up`.
        """
        self.steady_steps -= 1
        self._lag += 1
        self.last_step, self.settled_step = step, settled_step

    def catch_up(self) -> None:
        """Writes down what `decode_each` has counted; must come before the columns are used."""
        if self._lag:
            slots, lag, self._lag = self.running_slots, self._lag, 0
            self.written[slots] += lag
            self.num_computed[slots] = self.written[slots] - 1
            self.num_accepted[slots] = 1
            self.unsettled_step[slots] = self.last_step

    def count_steady_steps(self) -> None:
        """Finds out how long the running sequences, which have all been scheduled without drafts, change no table."""
        slots = self.running_slots
        self.steady_steps = max(0, int((self.quiet_until[slots] - self.written[slots]).min(initial=NEVER))) % NEVER

    def running_column(self, slots: Ints, block_tokens: int) -> Ints:
        """Tells running columns, `NO_COLUMN` where a sequence was never scheduled."""
        columns: Ints = self.running_start[slots] // block_tokens  # NO_COLUMN is -1, and stays it
        return columns

    def prepare(self, count: int) -> Ints:
        """Chooses slots for sequences to come and makes them blank; nothing is added yet.

        Returns:
            Slots, ``[count]``.
        """
        if not count:
            return NO_INTS
        if count > len(self._free):
            self._enlarge(count - len(self._free))
        slots = np.array(self._free[len(self._free) - count :][::-1], np.int64)
        self.num_computed[slots] = self.quiet_until[slots] = self.unsettled_step[slots] = 0
        self.num_accepted[slots], self.drafts[slots], self.running_start[slots] = 1, IDLE, NO_COLUMN
        self.tables.put(slots, Tables.blank(count, self._num_spec))
        return slots

    def replace(self, finished: Ints, sequence_ids: Ints, slots: Ints, namespaces: Sequence[str]) -> None:
        """Removes sequences and adds others, at the slots that were prepared last; an id may be in both.

        Args:
            finished: Slots of the sequences to remove.
            sequence_ids: Ids of those to add.
            slots: Their slots.
            namespaces: Their namespaces.
        """
        for sequence_id in self.ids[finished].tolist():
            del self._slots[sequence_id]
        self._lost.difference_update(finished.tolist())
        del self._free[len(self._free) - len(slots) :]
        self._free.extend(finished[::-1].tolist())
        self.ids[slots] = sequence_ids
        self._slots.update(zip(sequence_ids.tolist(), slots.tolist(), strict=True))
        for slot, namespace in zip(slots.tolist(), namespaces, strict=True):
            self.namespaces[slot] = namespace

    def in_order(self) -> Ints:
        """Lists the slots in use, in the order of sequence ids."""
        return np.array([slot for _, slot in sorted(self._slots.items())], np.int64)

    def held_blocks(self) -> Ints:
        """Lists the blocks to which the sequences hold references, those that wait for settlement included."""
        _, _, blocks = self.tables.take(self.in_order()).entries()
        return np.concatenate((blocks, self.unsettled.dropped_blocks()))

    def facts(self) -> tuple[object, ...]:
        """Tells all that decides what steps answer, as plain values in a fixed order."""
        self.catch_up()
        slots = self.in_order()
        columns = (self.ids, self.num_computed, self.num_accepted, self.running_start, self.drafts, self.unsettled_step)
        outstanding = np.where(self.drafts[slots] == IDLE, 0, self.written[slots])
        return (
            [column[slots].tolist() for column in columns],
            outstanding.tolist(),
            [column.tolist() for column in self.tables.take(slots).entries()],
            [self.namespaces[slot] for slot in slots.tolist()],
            (self.last_step, self.settled_step, self.digest),
            list(self.unsettled.facts()),
            self.running_ids.tolist(),
            sorted(self._lost),
        )

    def dump(self) -> SequencesState:
        """Shows everything, without copying the columns."""
        self.catch_up()
        return SequencesState(
            slots=self._slots,
            free=self._free,
            columns={name: getattr(self, name) for name in _COLUMNS},
            tables=self.tables,
            namespaces=self.namespaces,
            last_step=self.last_step,
            settled_step=self.settled_step,
            digest=self.digest,
            unsettled=self.unsettled.dump(),
            running_ids=self.running_ids,
            running_slots=self.running_slots,
            steady_steps=self.steady_steps,
            lost=sorted(self._lost),
        )

    def load(self, state: SequencesState) -> None:
        """Takes a state over."""
        self._slots, self._free = state.slots, state.free
        for name in _COLUMNS:
            setattr(self, name, state.columns[name])
        self.tables, self.namespaces = state.tables, state.namespaces
        self.last_step, self.settled_step, self.digest = state.last_step, state.settled_step, state.digest
        self.unsettled.load(state.unsettled)
        self.running_ids, self.running_slots = state.running_ids, state.running_slots
        self.steady_steps = state.steady_steps
        self._lost = set(state.lost)

    def _column(self) -> Ints:
        return np.empty(0, np.int64)

    def _enlarge(self, missing: int) -> None:
        before = len(self.ids)
        after = before + max(missing, before, _FEWEST_SLOTS)
        for name in _COLUMNS:
            setattr(self, name, np.pad(getattr(self, name), (0, after - before)))
        grown = Tables.blank(after, self._num_spec)
        grown.put(np.arange(before), self.tables)
        self.tables = grown
        self.namespaces += [""] * (after - before)
        self._free = [*range(after - 1, before - 1, -1), *self._free]


class SequenceTables:
    """The sequences of all sessions.

    Attributes:
        tables: Sequences by session id; a session that has made no step has none.
        count: Live sequences of all sessions.
    """

    def __init__(self) -> None:
        self.tables: dict[int, SequenceTable] = {}
        self.count = 0

    def of(self, session_id: int, num_spec: int) -> SequenceTable:
        """Finds the sequences of a session; a new, empty table where it has made no step."""
        table = self.tables.get(session_id)
        return SequenceTable(num_spec) if table is None else table

    def count_of(self, session_id: int) -> int:
        """Counts the live sequences of a session."""
        return len(self.tables.get(session_id, ()))

    def held_blocks(self, session_id: int) -> Ints:
        """Lists the blocks that stand in tables of a session, or wait for its settlement; one row per reference."""
        table = self.tables.get(session_id)
        return np.empty(0, np.int64) if table is None else table.held_blocks()

    def dump(self) -> dict[int, SequencesState]:
        """Shows everything, by session id."""
        return {session_id: table.dump() for session_id, table in self.tables.items()}

    def load(self, state: Mapping[int, SequencesState], num_spec: int) -> None:
        """Takes a state over."""
        for session_id, sequences in state.items():
            self.tables[session_id] = table = SequenceTable(num_spec)
            table.load(sequences)
        self.count = sum(map(len, self.tables.values()))

    def facts(self) -> list[tuple[object, ...]]:
        """Tells all that decides what steps answer, as plain values in a fixed order."""
        return [(session_id, *table.facts()) for session_id, table in sorted(self.tables.items())]


def _check_distinct(slots: NDArray[np.int64], field: str) -> None:
    if len(set(slots.tolist())) == len(slots):
        return
    _, first = np.unique(slots, return_index=True)
    row = int(np.setdiff1d(np.arange(len(slots)), first)[0])
    raise BadFieldError(f"{field}[{row}]: the sequence is named twice", field=field, row=row)
