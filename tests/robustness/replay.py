"""One session's acknowledged steps, replayed on the obvious model: each must have had exactly the effect it must have.

The model knows the rules of align mode (`support.align_rules`) and takes from the answers only what other sessions
decide too: which blocks were allocated, and which prefixes were found. A step that was applied twice, or never, leaves
columns and copies that the next answers contradict.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from statepool.v1 import sequence_pb2 as pb
from support.align_rules import NULL, ModelCopy, ModelPass, ModelSequence

Ref = tuple[int, int]
"""A block and its generation."""
Copies = list[tuple[int, ModelCopy]]


class ContradictionError(Exception):
    """An answer is not what the model says."""


@dataclass(frozen=True, slots=True)
class Hit:
    """What an admission searched for and found."""

    hashes: tuple[bytes, ...]
    """Hashes of the prefixes that a hit could cover, the shortest first."""
    found: int
    """How many of them, from the first, the hit covers."""


@dataclass(slots=True)
class Effect:
    """What a step did, as far as others are concerned."""

    allocated: list[Ref] = field(default_factory=list)
    """Blocks that the session may write from now on."""
    committed: list[bytes] = field(default_factory=list)
    """Hashes of boundaries whose states it declared to be in place."""
    hits: list[Hit] = field(default_factory=list)
    """What its admissions found."""


class SessionReplay:
    """The sequences of one session in one epoch.

    Attributes:
        last_step: Number of the last step that was replayed.
    """

    def __init__(self, block_tokens: int, num_spec: int, last_step: int) -> None:
        """Begins without sequences.

        Args:
            block_tokens: Tokens per block.
            num_spec: Most drafts of a pass.
            last_step: Number of the session's last step before.
        """
        self.last_step = last_step
        self._block_tokens = block_tokens
        self._num_spec = num_spec
        self._sequences: dict[int, ModelSequence] = {}
        self._running: list[int] = []
        self._generations: dict[int, int] = {}

    def held(self) -> Iterator[Ref]:
        """Yields the blocks that the session may write: those of its passes, and drafts' after them."""
        for sequence in self._sequences.values():
            for block in sequence.table:
                if block in self._generations:
                    yield block, self._generations[block]

    def inherit(self, last_step: int, sequence_ids: Sequence[int]) -> None:
        """Takes note of what a former owner has left, of which the new one knows only that it is there.

        Raises:
            ContradictionError: More than one step was applied of which the former owner did not know.
        """
        _expect("steps that a former owner was not told of", last_step - self.last_step in (0, 1), True)
        self.last_step = last_step
        self._sequences = {sequence_id: ModelSequence() for sequence_id in sequence_ids}

    def apply(self, step: pb.EngineStep, outcome: pb.StepOutcome) -> Effect:
        """Replays a step; after a contradiction nothing more can be said of the session.

        Raises:
            ContradictionError: Its answer is not what it must be.
        """
        _expect("number", outcome.step, self.last_step + 1)
        self.last_step += 1
        try:
            return self._apply(step, outcome)
        except (AssertionError, LookupError, ValueError) as error:
            raise ContradictionError(f"the step cannot follow what came before: {error!r}") from error

    def _apply(self, step: pb.EngineStep, outcome: pb.StepOutcome) -> Effect:
        effect = Effect()
        self._commit(step.commits, outcome, effect)
        for sequence_id in step.finishes:
            del self._sequences[sequence_id]
        self._running = [sequence_id for sequence_id in self._running if sequence_id in self._sequences]
        self._admit(step.admissions, outcome.admissions, effect)
        self._schedule(step.schedules, outcome, effect)
        return effect

    def _commit(self, commits: pb.Commits, outcome: pb.StepOutcome, effect: Effect) -> None:
        ids = self._running if commits.all_running else list(commits.sequence_ids)
        copies: Copies = []
        boundaries: dict[int, int | None] = {}
        for row, (sequence_id, accepted) in enumerate(zip(ids, _spread(commits.accepted_tokens, ids), strict=True)):
            boundaries[row], copy = self._sequences[sequence_id].commit(accepted, self._block_tokens)
            if copy is not None:
                copies.append((row, copy))
        for row, boundary in zip(commits.hash_rows, commits.boundary_tokens, strict=True):
            _expect(f"boundary of row {row}", boundary, boundaries[row])
        _expect("post-copies", _copies(outcome.post_copies), copies)
        effect.committed += commits.prefix_hashes

    def _admit(self, admissions: pb.Admissions, results: pb.AdmissionResults, effect: Effect) -> None:
        offsets = list(admissions.hash_offsets) or [0] * (1 + len(admissions.sequence_ids))
        _expect("admissions", len(results.num_computed_tokens), len(admissions.sequence_ids))
        for row, sequence_id in enumerate(admissions.sequence_ids):
            hashes = admissions.prefix_hashes[offsets[row] : offsets[row + 1]]
            tokens, block = results.num_computed_tokens[row], results.block_ids[row]
            column, rest = divmod(tokens, self._block_tokens)
            _expect("tokens of a hit beyond a boundary", rest, 0)
            most = (admissions.prompt_tokens[row] - 1) // self._block_tokens
            _expect("hit within the prompt", column <= min(most, len(hashes)), True)
            effect.hits.append(Hit(tuple(hashes[:most]), column))
            self._generations.pop(block, None)
            self._sequences[sequence_id] = ModelSequence(
                num_computed=tokens, table=[NULL] * (column - 1) + [block] if column else []
            )

    def _schedule(self, schedules: pb.Schedules, outcome: pb.StepOutcome, effect: Effect) -> None:
        ids = self._running if schedules.all_running else list(schedules.sequence_ids)
        tokens, drafts = _spread(schedules.num_tokens, ids), _spread(schedules.num_draft_tokens or [0], ids)
        windows = _windows(outcome.tables, 1 + self._num_spec)
        changed, copies, zeroed = set(), Copies(), []
        for row, sequence_id in enumerate(ids):
            sequence = self._sequences[sequence_id]
            sequence.retire(self._block_tokens)
            before, old_table = sequence.window(self._num_spec), list(sequence.table)
            missing = sequence.missing(tokens[row], self._block_tokens, self._num_spec)
            self._allocate(sequence, windows.get(row, []), missing, effect)
            is_fresh = sequence.starts_from_nothing()
            copy = sequence.run(tokens[row], old_table, self._block_tokens)
            now = sequence.window(self._num_spec)
            assert now is not None
            if now != before:
                changed.add(row)
                _expect(f"blocks of row {row}", [block for block, _ in windows.get(row, [])], now[1])
            if is_fresh:
                zeroed.append(now[1][0])
            if copy is not None:
                copies.append((row, copy))
            sequence.outstanding = ModelPass(tokens[row], drafts[row])
        if ids:
            self._running = ids
        _expect("changed rows", set(windows), changed)
        _expect("zeroed blocks", list(outcome.zeroed_block_ids), zeroed)
        _expect("pre-copies", _copies(outcome.pre_copies), copies)

    def _allocate(self, sequence: ModelSequence, window: list[Ref], missing: int, effect: Effect) -> None:
        if not missing:
            return
        _expect("new blocks", len(window) >= missing, True)
        new = window[len(window) - missing :]
        sequence.table += [block for block, _ in new]
        self._generations.update(new)
        effect.allocated += new


def _expect(what: str, answered: object, expected: object) -> None:
    if answered != expected:
        raise ContradictionError(f"{what}: answered {answered}, the model says {expected}")


def _spread(values: Sequence[int], ids: Sequence[int]) -> list[int]:
    return list(values) if len(values) == len(ids) else list(values) * len(ids)


def _windows(tables: pb.TableChanges, width: int) -> dict[int, list[Ref]]:
    refs = list(zip(tables.block_ids, tables.generations, strict=True))
    return {row: refs[index * width : (index + 1) * width] for index, row in enumerate(tables.rows)}


def _copies(copies: pb.StepCopies) -> Copies:
    columns = zip(
        *(copies.src_columns, copies.dst_columns, copies.token_biases),
        *(copies.src_block_ids, copies.temporal_src_block_ids, copies.dst_block_ids),
        strict=True,
    )
    return [(row, ModelCopy(*columns)) for row, columns in zip(copies.rows, columns, strict=True)]
