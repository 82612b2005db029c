"""Engine steps written in the most obvious way, on top of the naive pool. What `Pool.step` must agree with."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from statepool import errors
from statepool_server.answers import Usage
from statepool_server.sequences.requests import StepRequest
from support.align_rules import NULL, ModelCopy, ModelPass, ModelSequence
from support.pool_model import ModelPool

MAX_TOKENS = 2**31 - 1
UNKNOWN = -1
"""Stands for a block that cannot be had."""

Pin = tuple[set[int], set[int]]
Name = tuple[str, bytes]
Rows = list[tuple[int, ModelCopy]]


@dataclass
class ModelSteps:
    """The sequences of one session, and how far its steps are."""

    last_step: int = 0
    settled_step: int = 0
    sequences: dict[int, ModelSequence] = field(default_factory=dict)
    running: list[int] = field(default_factory=list)
    held_back: list[tuple[int, int]] = field(default_factory=list)
    """Step to be settled, and block whose reference is kept until then."""
    unpublished: list[tuple[int, int, Name]] = field(default_factory=list)
    """Step to be settled, and block to be found under a name from then on."""


@dataclass
class ModelWork:
    """What the server has to do."""

    session_id: int
    pin: Pin
    to_publish: list[tuple[int, Name]]


@dataclass
class ModelOutcome:
    """What a step answers."""

    admitted: list[tuple[int, int]] = field(default_factory=list)
    """Tokens and block of each admission."""
    changed: list[tuple[int, int, list[int]]] = field(default_factory=list)
    """Row, running column and blocks of each changed table."""
    post_copies: Rows = field(default_factory=list)
    zeroed: list[int] = field(default_factory=list)
    pre_copies: Rows = field(default_factory=list)
    published: int = 0
    usage: Usage | None = None
    work: ModelWork | None = None


def ask(holds: bool, error: type[errors.StatepoolError], **facts: int) -> None:
    """Refuses unless something holds."""
    if not holds:
        failure = error("")
        failure.metadata = {name: str(value) for name, value in facts.items()}
        raise failure


def plain(column: NDArray[np.int64] | None) -> list[int] | None:
    """Reads a column."""
    return None if column is None else column.tolist()


def spread(values: list[int], rows: int) -> list[int]:
    """Gives every row its value; one value is for all."""
    ask(len(values) in (1, rows), errors.ColumnLengthMismatchError)
    return values if len(values) == rows else values * rows


class AlignModel(ModelPool):
    """The rules of engine steps, one `if` at a time; whole or not at all by restoring what was there before."""

    def __init__(self, block_count: int, max_sessions: int, block_tokens: int, spec: int, max_sequences: int) -> None:
        super().__init__(block_count, max_sessions, block_tokens)
        self.spec = spec
        self.max_sequences = max_sequences
        self.steps: dict[int, ModelSteps] = {}

    # What the pool asks

    def in_sequences(self, session_id: int, block_id: int) -> int:
        steps = self.steps.get(session_id, ModelSteps())
        tables = sum(sequence.table.count(block_id) for sequence in steps.sequences.values())
        return tables + [block for _, block in steps.held_back].count(block_id)

    def usage(self) -> Usage:
        return super().usage()._replace(sequences=sum(len(steps.sequences) for steps in self.steps.values()))

    def _close(self, session_id: int) -> int:
        self.steps.pop(session_id, None)
        return super()._close(session_id)

    # Steps

    def step(self, session_id: int, epoch: int, request: StepRequest) -> ModelOutcome:
        """Applies a step; with partial admission, tries it with fewer and fewer admissions until there are blocks."""
        self.owned(session_id, epoch)
        admissions = len(request.admissions)
        try:
            return self._whole(session_id, request, admissions)
        except errors.PoolExhaustedError as exhausted:
            if request.partial_admission:
                for count in reversed(range(admissions)):
                    try:
                        return self._whole(session_id, request, count)
                    except errors.PoolExhaustedError:
                        pass
            raise exhausted

    def lend_sequence(
        self, session_id: int, epoch: int, sequence_id: int, token: bytes, expires: int
    ) -> tuple[int, set[int]]:
        """Lends the state of a sequence that stands still; returns the transfer's id and what is pinned for it."""
        self.owned(session_id, epoch)
        steps = self.steps.get(session_id, ModelSteps())
        ask(sequence_id in steps.sequences, errors.SequenceNotFoundError)
        sequence = steps.sequences[sequence_id]
        ask(sequence.outstanding is None and sequence.num_computed > 0, errors.StepOutOfOrderError)
        ask(sequence.touched <= steps.settled_step, errors.StepOutOfOrderError)
        image = sequence.state(self.block_tokens)
        return self.lend(session_id, [image], sequence.num_computed, token, expires)

    def finish_work(self, work: ModelWork, unpinned: list[int]) -> None:
        """Takes note that copies are done.

        Args:
            work: What was done.
            unpinned: Its blocks, in the order in which the pool was told of them.
        """
        if work.session_id in self.sessions:
            for block, name in work.to_publish:
                self.publish(block, name)
        self.unpin(work.pin)
        self.settle_after_unpin(unpinned)

    def _whole(self, session_id: int, request: StepRequest, admissions: int) -> ModelOutcome:
        before = copy.deepcopy(self)
        try:
            return _Step(self, before, session_id, request, admissions).apply()
        except errors.StatepoolError:
            self.__dict__ = before.__dict__
            raise

    def publish(self, block_id: int, name: Name) -> int:
        if self.find(*name) is not None:
            return 0
        self.blocks[block_id].name = name
        self.blocks[block_id].committed = True
        return 1

    def drop(self, session_id: int, block_ids: list[int]) -> None:
        blank: list[int] = []
        for block_id in block_ids:
            references = self.blocks[block_id].references
            references[session_id] -= 1
            if not references[session_id]:
                del references[session_id]
        for block_id in dict.fromkeys(block_ids):
            self._settle(block_id, blank)
        self._stack(blank)


class _Step:
    """One step, applied part by part; an error leaves the model half-way, for `AlignModel` to restore."""

    def __init__(
        self, model: AlignModel, before: AlignModel, session_id: int, request: StepRequest, admissions: int
    ) -> None:
        self.model = model
        self.before = before
        self.session_id = session_id
        self.request = request
        self.admissions = admissions
        self.steps = model.steps.setdefault(session_id, ModelSteps())
        self.outcome = ModelOutcome()
        self.to_publish: list[tuple[int, Name]] = []
        self.exhausted: errors.PoolExhaustedError | None = None

    def apply(self) -> ModelOutcome:
        self._number()
        self._settle()
        post_pin = self._commits()
        self._finishes()
        self._admissions()
        self._schedules()
        self.model.unpin(post_pin)
        self._work()
        self.outcome.usage = self.model.usage()
        return self.outcome

    # Numbers, and what is settled

    def _number(self) -> None:
        request, steps = self.request, self.steps
        ask(request.step == steps.last_step + 1, errors.StepOutOfOrderError)
        ask(request.settled_step < request.step, errors.BadFieldError)
        steps.last_step = request.step
        steps.settled_step = max(steps.settled_step, request.settled_step)

    def _settled(self, step: int) -> bool:
        return step <= self.steps.settled_step

    def _settle(self) -> None:
        steps = self.steps
        for step, block, name in steps.unpublished:
            if self._settled(step):
                ask(not self.before.blocks[block].writing, errors.BlockBusyError)
                self.outcome.published += self.model.publish(block, name)
        due = [block for step, block in steps.held_back if self._settled(step)]
        steps.unpublished = [item for item in steps.unpublished if not self._settled(item[0])]
        steps.held_back = [item for item in steps.held_back if not self._settled(item[0])]
        self.model.drop(self.session_id, due)

    def _give_up(self, blocks: list[tuple[int, int]]) -> None:
        """Drops blocks, each named with the last step that touched its sequence."""
        waiting = [item for item in blocks if not self._settled(item[0])]
        self.steps.held_back += sorted(waiting, key=lambda item: item[0])
        self.model.drop(self.session_id, [block for step, block in blocks if self._settled(step)])

    # Commits

    def _commits(self) -> Pin:
        commits = self.request.commits
        ids = plain(commits.sequence_ids)
        sequences = self._sequences(self.steps.running if ids is None else ids)
        accepted = spread(commits.accepted_tokens.tolist(), len(sequences))
        for sequence, tokens in zip(sequences, accepted, strict=True):
            ask(sequence.outstanding is not None, errors.StepOutOfOrderError)
            assert sequence.outstanding is not None
            ask(1 <= tokens <= 1 + sequence.outstanding.drafts, errors.BadFieldError)
        reached: dict[int, int] = {}
        for row, (sequence, tokens) in enumerate(zip(sequences, accepted, strict=True)):
            boundary, moved = sequence.commit(tokens, self.model.block_tokens)
            if boundary is not None:
                reached[row] = boundary
            if moved is not None:
                self.outcome.post_copies.append((row, moved))
        copies = self.outcome.post_copies
        self._check_copies([(sequences[row], moved) for row, moved in copies])
        self._check_hashes(reached)
        pin = self._pin_copies()
        self._publish_boundaries(sequences, {row for row, _ in copies})
        if self.request.by_worker:
            for row, _ in copies:
                sequences[row].touched = self.request.step
        return pin

    def _check_copies(self, copies: list[tuple[ModelSequence, ModelCopy]]) -> None:
        if not self.request.by_worker:
            for sequence, _ in copies:
                ask(self._settled(sequence.touched), errors.StepOutOfOrderError)
        before = self.before.blocks
        for _, moved in copies:
            ask(moved.dst == UNKNOWN or not before[moved.dst].busy, errors.BlockBusyError)
        for sources in ([moved.src for _, moved in copies], [moved.temporal_src for _, moved in copies]):
            self.before.check_uncondemned(sources)
            ask(not any(before[block].writing for block in sources), errors.BlockBusyError)

    def _check_hashes(self, reached: dict[int, int]) -> None:
        commits = self.request.commits
        for row, boundary in zip(commits.hash_rows.tolist(), commits.boundary_tokens.tolist(), strict=True):
            ask(reached.get(row) == boundary, errors.BoundaryNotWrittenError)

    def _pin_copies(self) -> Pin:
        if self.request.by_worker:
            return set(), set()
        copies = [moved for _, moved in self.outcome.post_copies]
        sources = [block for moved in copies for block in (moved.src, moved.temporal_src)]
        return self.model.mark(sources, [moved.dst for moved in copies])

    def _publish_boundaries(self, sequences: list[ModelSequence], copied: set[int]) -> None:
        commits, later = self.request.commits, []
        rows = zip(commits.hash_rows.tolist(), commits.boundary_tokens.tolist(), strict=True)
        self.before.check_uncondemned([sequences[row].table[at // self.model.block_tokens - 1] for row, at in rows])
        names = zip(commits.hash_rows.tolist(), commits.boundary_tokens.tolist(), commits.prefix_hashes, strict=True)
        for row, boundary, value in names:
            sequence = sequences[row]
            block = sequence.table[boundary // self.model.block_tokens - 1]
            name = (sequence.namespace, value)
            ask(not self.before.blocks[block].writing, errors.BlockBusyError)
            step = self.request.step if row in copied else sequence.touched
            if row in copied and not self.request.by_worker:
                self.to_publish.append((block, name))
            elif self._settled(step):
                self.outcome.published += self.model.publish(block, name)
            else:
                later.append((step, block, name))
        self.steps.unpublished += sorted(later, key=lambda item: item[0])

    # Finishes and admissions

    def _finishes(self) -> None:
        dropped = []
        finishes = self.request.finishes.tolist()
        for sequence in self._sequences(finishes):
            dropped += [(sequence.touched, block) for block in reversed(sequence.table) if block != NULL]
        for sequence_id in finishes:
            del self.steps.sequences[sequence_id]
        self.steps.running = [sequence_id for sequence_id in self.steps.running if sequence_id not in finishes]
        self._give_up(dropped)

    def _admissions(self) -> None:
        admissions = self.request.admissions.first(self.admissions)
        ids = admissions.sequence_ids.tolist()
        if not ids:
            return
        live = sum(len(steps.sequences) for steps in self.model.steps.values())
        ask(live + len(ids) <= self.model.max_sequences, errors.QuotaExceededError)
        for row, sequence_id in enumerate(ids):
            ask(sequence_id >= 0 and sequence_id not in ids[:row], errors.BadFieldError)
            ask(sequence_id not in self.steps.sequences, errors.SequenceExistsError)
        offsets, tokens = admissions.hash_offsets.tolist(), admissions.prompt_tokens.tolist()
        imports = dict(zip(admissions.import_rows.tolist(), admissions.imported_tokens.tolist(), strict=True))
        for row in range(len(ids)):
            hashes = offsets[row + 1] - offsets[row]
            ask(1 <= tokens[row] <= MAX_TOKENS, errors.BadFieldError)
            ask(hashes <= tokens[row] // self.model.block_tokens, errors.BadFieldError)
            ask(admissions.max_hit_tokens[row] >= 0, errors.BadFieldError)
            ask(row not in imports or (1 <= imports[row] <= MAX_TOKENS and not hashes), errors.BadFieldError)
        refs = admissions.imported_blocks
        blocks = self._importable(list(zip(refs.block_ids.tolist(), refs.generations.tolist(), strict=True)))
        imported = dict(zip(imports, blocks, strict=True))
        for row, sequence_id in enumerate(ids):
            sequence = ModelSequence(admissions.namespaces[row])
            if row in imports:
                self._import(sequence, imports[row], imported[row])
            else:
                most = min(tokens[row] - 1, int(admissions.max_hit_tokens[row]))
                self._hit(sequence, admissions.prefix_hashes[offsets[row] : offsets[row + 1]], most)
            self.steps.sequences[sequence_id] = sequence
            self.outcome.admitted.append((sequence.num_computed, sequence.table[-1] if sequence.table else NULL))

    def _importable(self, refs: list[tuple[int, int]]) -> list[int]:
        """Checks imported blocks, as they are before the step."""
        model = self.before
        ids = model.destinations(self.session_id, refs)
        for block_id in ids:
            ask(not model.in_sequences(self.session_id, block_id), errors.BlockInSequenceError)
        for block_id in ids:
            ask(model.blocks[block_id].references == {self.session_id: 1}, errors.BlockNotWritableError)
        return ids

    def _import(self, sequence: ModelSequence, tokens: int, block_id: int) -> None:
        sequence.num_computed = tokens
        sequence.table = [NULL] * ((tokens - 1) // self.model.block_tokens) + [block_id]

    def _hit(self, sequence: ModelSequence, hashes: Sequence[bytes], most_tokens: int) -> None:
        for column in reversed(range(len(hashes))):
            block_id = self.model.find(sequence.namespace, hashes[column])
            tokens = (column + 1) * self.model.block_tokens
            if block_id is not None and tokens <= most_tokens:
                sequence.num_computed = tokens
                sequence.table = [NULL] * column + [block_id]
                self.model.take_reference(self.session_id, block_id)
                return

    # Schedules

    def _schedules(self) -> None:
        rows = self._schedule_rows()
        model, copies = self.model, []
        self._check_schedules(rows)
        dropped = []
        for _, sequence, _ in rows:
            dropped += [(sequence.touched, block) for block in sequence.retire(model.block_tokens)]
        self._give_up(dropped)
        windows = [sequence.window(model.spec) for _, sequence, _ in rows]
        old_tables = [list(sequence.table) for _, sequence, _ in rows]
        new_blocks = self._allocate(rows)
        for (row, sequence, step), old_table, blocks, window in zip(rows, old_tables, new_blocks, windows, strict=True):
            sequence.table += blocks
            fresh = sequence.starts_from_nothing()
            moved = sequence.run(step.tokens, old_table, model.block_tokens)
            if moved is not None:
                copies.append((sequence, moved))
                self.outcome.pre_copies.append((row, moved))
            now = sequence.window(model.spec)
            assert now is not None
            assert NULL not in now[1]
            if fresh:
                self.outcome.zeroed.append(now[1][0])
            if now != window:
                self.outcome.changed.append((row, *now))
        self._check_copies(copies)
        if self.exhausted is not None:
            raise self.exhausted
        for _, sequence, step in rows:
            sequence.outstanding, sequence.touched = step, self.request.step

    def _check_schedules(self, rows: list[tuple[int, ModelSequence, ModelPass]]) -> None:
        for _, sequence, _ in rows:
            ask(sequence.outstanding is None, errors.StepOutOfOrderError)
        for _, _, step in rows:
            ask(step.tokens >= 1, errors.BadFieldError)
            ask(step.drafts == 0 or step.drafts == step.tokens - 1 <= self.model.spec, errors.BadFieldError)
        self._check_not_lent([sequence for _, sequence, _ in rows])
        for _, sequence, step in rows:
            ask(sequence.num_computed + step.tokens <= MAX_TOKENS, errors.BadFieldError)

    def _check_not_lent(self, sequences: list[ModelSequence]) -> None:
        lent = {block for transfer in self.model.transfers.values() for block in transfer.pin[0]}
        written = {block for block in lent if not self.before.blocks[block].committed}
        ask(not any(written.intersection(sequence.table) for sequence in sequences), errors.BlockBusyError)

    def _schedule_rows(self) -> list[tuple[int, ModelSequence, ModelPass]]:
        schedules = self.request.schedules
        ids = plain(schedules.sequence_ids)
        named = self.steps.running if ids is None else ids
        columns = schedules.num_tokens.tolist(), schedules.num_draft_tokens.tolist()
        tokens, drafts = (spread(column, len(named)) for column in columns)
        left_out = self.request.admissions.sequence_ids.tolist()[self.admissions :]
        rows = [row for row, sequence_id in enumerate(named) if ids is None or sequence_id not in left_out]
        chosen = [named[row] for row in rows]
        known = self.before.steps.get(self.session_id, ModelSteps()).sequences.keys() | self.steps.sequences.keys()
        ask(known >= set(chosen), errors.SequenceNotFoundError)
        ask(len(set(chosen)) == len(chosen), errors.BadFieldError)
        sequences = self._sequences(chosen)
        if ids:
            self.steps.running = chosen
        return [
            (row, sequence, ModelPass(tokens[row], drafts[row])) for row, sequence in zip(rows, sequences, strict=True)
        ]

    def _allocate(self, rows: list[tuple[int, ModelSequence, ModelPass]]) -> list[list[int]]:
        model = self.model
        counts = [sequence.missing(step.tokens, model.block_tokens, model.spec) for _, sequence, step in rows]
        if sum(counts) > len(model.free) + len(model.evictable):
            taken = self._hits_of_evictable_blocks()
            self.exhausted = errors.PoolExhaustedError(
                "", free=len(model.free), evictable=len(model.evictable) + taken, requested=sum(counts) + taken
            )
            return [[UNKNOWN] * count for count in counts]
        refs = model.allocate(self.session_id, model.sessions[self.session_id].epoch, sum(counts))
        blocks = iter(block for block, _ in refs)
        return [[next(blocks) for _ in range(count)] for count in counts]

    def _hits_of_evictable_blocks(self) -> int:
        """Counts the blocks that would be evictable had the step not admitted sequences that found them."""
        imports = self.request.admissions.import_rows.tolist()
        hits = [block for row, (_, block) in enumerate(self.outcome.admitted) if block != NULL and row not in imports]
        blocks = {block: self.model.blocks[block] for block in hits}
        return sum(1 for i, b in blocks.items() if sum(b.references.values()) == hits.count(i) and not b.busy)

    # Work

    def _work(self) -> None:
        if self.request.by_worker:
            return
        copies = [moved for _, moved in (*self.outcome.post_copies, *self.outcome.pre_copies)]
        sources = [block for moved in copies for block in (moved.src, moved.temporal_src)]
        writers = [*(moved.dst for moved in copies), *self.outcome.zeroed]
        self.outcome.work = ModelWork(self.session_id, self.model.mark(sources, writers), self.to_publish)

    def _sequences(self, ids: list[int]) -> list[ModelSequence]:
        for sequence_id in ids:
            ask(sequence_id in self.steps.sequences, errors.SequenceNotFoundError)
        ask(len(set(ids)) == len(ids), errors.BadFieldError)
        return [self.steps.sequences[sequence_id] for sequence_id in ids]
