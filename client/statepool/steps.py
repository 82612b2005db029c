"""Builds engine steps from what an engine knows: its tokens. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypedDict

from statepool.chunks import align_chunk
from statepool.hashing import PrefixHasher, TokenIds
from statepool.sequences import ALL_RUNNING, Admission, Commits, ImportedState, Schedules, SequenceIds

if TYPE_CHECKING:
    from statepool.outcomes import StepOutcome


class StepColumns(TypedDict):
    """Arguments of `Scheduler.step`."""

    admit: list[Admission]
    schedule: Schedules | None
    commit: Commits | None
    finish: list[int]


@dataclass(slots=True)
class _Sequence:
    """What the engine knows of one sequence."""

    hasher: PrefixHasher
    """Its tokens."""
    num_computed: int = 0
    """Tokens that its state has seen."""
    num_tokens: int = 0
    """Tokens of the outstanding pass; 0: there is none."""
    num_drafts: int = 0
    """Drafts among them."""


@dataclass(slots=True)
class _Commit:
    """Result of a pass."""

    accepted: int
    boundary: int
    """Boundary at which a state stands now; 0: there is none."""
    prefix_hash: bytes


@dataclass(slots=True)
class _Pass:
    """A forward pass to come."""

    sequence: _Sequence
    num_tokens: int
    num_drafts: int


@dataclass(slots=True)
class _Parts:
    """Parts of a step, by sequence."""

    commits: dict[int, _Commit] = field(default_factory=dict)
    finishes: dict[int, None] = field(default_factory=dict)
    admissions: dict[int, tuple[Admission, _Sequence]] = field(default_factory=dict)
    passes: dict[int, _Pass] = field(default_factory=dict)

    def copy(self) -> _Parts:
        """Keeps what they are now."""
        return _Parts(dict(self.commits), dict(self.finishes), dict(self.admissions), dict(self.passes))

    def without(self, applied: _Parts) -> _Parts:
        """Keeps what has come after the parts that were applied."""
        return _Parts(
            {key: commit for key, commit in self.commits.items() if key not in applied.commits},
            {key: None for key in self.finishes if key not in applied.finishes},
            {key: row for key, row in self.admissions.items() if applied.admissions.get(key) is not row},
            {key: run for key, run in self.passes.items() if key not in applied.passes},
        )


class StepBuilder:
    """Collects the parts of the next engine step, and knows when a commit reaches a boundary, and the boundary's hash.

    It keeps the counters of every sequence as the server does, from the tokens that it is told:

        builder.admit(7, prompt)
        builder.applied(scheduler.step(**builder.step()))  # tells how much of the prompt was found
        builder.schedule_prefill(7, budget=2048)
        builder.applied(scheduler.step(**builder.step()))
        builder.commit(7, sampled)
        builder.schedule(7, 1)
        builder.applied(scheduler.step(**builder.step()))

    A step that was refused stays as it is: `finish` what does not fit, and ask for it again. What is collected while a
    step is under way (an abort, say) goes into the next one. A session has one builder, and a builder one step under
    way.
    """

    def __init__(self, block_tokens: int, *, namespace: str = "", salt: bytes = b"") -> None:
        """Builds a builder without sequences.

        Args:
            block_tokens: Tokens per block, ``Pool.block_tokens``.
            namespace: Where prefixes are found; keeps models and tenants apart.
            salt: What else states depend on, see `statepool.hashing`.
        """
        self._block_tokens = block_tokens
        self._namespace = namespace
        self._salt = salt
        self._sequences: dict[int, _Sequence] = {}
        self._running: list[int] = []
        self._pending = _Parts()
        self._given = _Parts()

    def admit(
        self,
        sequence_id: int,
        token_ids: TokenIds,
        *,
        max_hit_tokens: int | None = None,
        imported: ImportedState | None = None,
    ) -> None:
        """Begins a sequence.

        It can be scheduled when the step was applied, since only then is known how many tokens are left to compute.

        Args:
            sequence_id: An id that is not in use.
            token_ids: All tokens known: the prompt, and after a preemption what was generated.
            max_hit_tokens: Most tokens that a hit may cover; None: no bound.
            imported: State to begin with, instead of searching.

        Raises:
            ValueError: The id is in use, or there is no token.
        """
        if sequence_id in self._sequences or not len(token_ids):
            raise ValueError(f"sequence {sequence_id} is live, or has no token")
        hasher = PrefixHasher(self._block_tokens, salt=self._salt)
        hasher.extend(token_ids)
        self._sequences[sequence_id] = sequence = _Sequence(hasher)
        admission = Admission(
            sequence_id=sequence_id,
            prompt_tokens=hasher.num_tokens,
            prefix_hashes=() if imported else tuple(hasher.hashes),
            max_hit_tokens=max_hit_tokens,
            namespace=self._namespace,
            imported=imported,
        )
        self._pending.admissions[sequence_id] = admission, sequence

    def schedule(self, sequence_id: int, num_tokens: int, num_draft_tokens: int = 0) -> None:
        """Schedules a pass, whose tokens include drafts; called again before the step is applied, it replaces the pass.

        Raises:
            ValueError: The sequence is not admitted yet, or has an outstanding pass; fewer tokens are known; or drafts
                do not follow the last known token.
        """
        sequence = self._live(sequence_id)
        if sequence_id in self._pending.admissions or sequence.num_tokens:
            raise ValueError(f"sequence {sequence_id} is not admitted yet, or has an outstanding pass")
        known, left = num_tokens - num_draft_tokens, self.num_left(sequence_id)
        if not 1 <= known <= left or (num_draft_tokens and left > 1):
            raise ValueError(
                f"sequence {sequence_id}: no {known} tokens and {num_draft_tokens} drafts, {left} are left"
            )
        self._pending.passes[sequence_id] = _Pass(sequence, num_tokens, num_draft_tokens)

    def schedule_prefill(self, sequence_id: int, budget: int) -> int:
        """Schedules as much of the known tokens as a budget allows, so that the pass ends at a boundary if it can.

        Returns:
            Tokens scheduled, see `align_chunk`.

        Raises:
            ValueError: As `schedule`.
        """
        sequence = self._live(sequence_id)
        left = self.num_left(sequence_id)
        tokens = align_chunk(sequence.num_computed, min(budget, left), sequence.hasher.num_tokens, self._block_tokens)
        if tokens:
            self.schedule(sequence_id, tokens)
        return tokens

    def commit(self, sequence_id: int, token_ids: TokenIds = ()) -> None:
        """Takes the result of an outstanding pass.

        Args:
            sequence_id: The sequence.
            token_ids: Tokens that became known: the accepted drafts and the one that was sampled; none after a prefill
                chunk that does not reach the end of the prompt.

        Raises:
            ValueError: The sequence has no outstanding pass, or one that gives no such tokens: more than its drafts and
                one, or any from a chunk that ends before the last known token.
        """
        sequence, accepted = self._live(sequence_id), max(1, len(token_ids))
        if not sequence.num_tokens:
            raise ValueError(f"sequence {sequence_id} has no outstanding pass")
        written = sequence.num_computed + sequence.num_tokens - sequence.num_drafts
        if accepted > 1 + sequence.num_drafts or (len(token_ids) and written < sequence.hasher.num_tokens):
            raise ValueError(f"sequence {sequence_id}: its pass cannot give {len(token_ids)} tokens")
        sequence.hasher.extend(token_ids)
        sequence.num_computed = written + accepted - 1
        sequence.num_tokens = sequence.num_drafts = 0
        boundary = sequence.num_computed - sequence.num_computed % self._block_tokens
        if boundary < written:
            self._pending.commits[sequence_id] = _Commit(accepted, 0, b"")
        else:
            value = sequence.hasher.hashes[boundary // self._block_tokens - 1]
            self._pending.commits[sequence_id] = _Commit(accepted, boundary, value)

    def finish(self, sequence_id: int) -> None:
        """Ends a sequence, whatever it is doing.

        Raises:
            ValueError: There is no such sequence.
        """
        self._live(sequence_id)
        del self._sequences[sequence_id]
        self._pending.passes.pop(sequence_id, None)
        if self._pending.admissions.pop(sequence_id, None) is None:
            self._pending.finishes[sequence_id] = None

    @property
    def scheduled(self) -> list[int]:
        """Sequences whose passes are in the step that is being built; `TableChanges.rows` counts them."""
        return list(self._pending.passes)

    def num_computed(self, sequence_id: int) -> int:
        """Tells how many tokens a sequence's state has seen."""
        return self._live(sequence_id).num_computed

    def num_scheduled(self, sequence_id: int) -> int:
        """Tells the tokens of a sequence's outstanding pass, 0 where there is none."""
        return self._live(sequence_id).num_tokens

    def num_left(self, sequence_id: int) -> int:
        """Tells how many known tokens its state has not seen; 1: the sequence decodes."""
        sequence = self._live(sequence_id)
        return sequence.hasher.num_tokens - sequence.num_computed

    def step(self) -> StepColumns:
        """Gives the arguments of `Scheduler.step`; what was collected stays until `applied`."""
        pending = self._pending
        self._given = pending.copy()
        return {
            "commit": self._commits() if pending.commits else None,
            "finish": list(pending.finishes),
            "admit": [admission for admission, _ in pending.admissions.values()],
            "schedule": self._schedules() if pending.passes else None,
        }

    def applied(self, outcome: StepOutcome) -> list[int]:
        """Takes note that the step that `step` gave last was applied, and begins the next.

        Returns:
            Sequences that were not admitted for want of blocks (``partial_admission``); they are forgotten.
        """
        given, self._given = self._given, _Parts()
        self._pending = self._pending.without(given)
        for run in given.passes.values():
            run.sequence.num_tokens, run.sequence.num_drafts = run.num_tokens, run.num_drafts
        self._running = list(given.passes) or self._after(given.finishes)
        return self._admitted(given.admissions, outcome.admissions.num_computed_tokens.tolist())

    def _admitted(self, admissions: dict[int, tuple[Admission, _Sequence]], num_computed: list[int]) -> list[int]:
        left_out = []
        for row, (sequence_id, (_, sequence)) in enumerate(admissions.items()):
            is_wanted = self._sequences.get(sequence_id) is sequence
            if row < len(num_computed):
                sequence.num_computed = num_computed[row]
                if not is_wanted:  # finished while the step was under way
                    self._pending.finishes[sequence_id] = None
            elif is_wanted:
                del self._sequences[sequence_id]
                left_out.append(sequence_id)
        return left_out

    def _live(self, sequence_id: int) -> _Sequence:
        sequence = self._sequences.get(sequence_id)
        if sequence is None:
            raise ValueError(f"sequence {sequence_id} is not live")
        return sequence

    def _commits(self) -> Commits:
        commits = self._pending.commits
        reached = [row for row, commit in enumerate(commits.values()) if commit.boundary]
        values = list(commits.values())
        return Commits(
            self._named(list(commits), self._running),
            [commit.accepted for commit in values],
            hash_rows=reached,
            boundary_tokens=[values[row].boundary for row in reached],
            prefix_hashes=[values[row].prefix_hash for row in reached],
        )

    def _schedules(self) -> Schedules:
        passes = self._pending.passes
        ids = self._named(list(passes), self._after(self._pending.finishes))
        return Schedules(ids, [run.num_tokens for run in passes.values()], [run.num_drafts for run in passes.values()])

    def _after(self, finishes: dict[int, None]) -> list[int]:
        return [sequence_id for sequence_id in self._running if sequence_id not in finishes]

    def _named(self, sequence_ids: list[int], running: list[int]) -> SequenceIds:
        """Names the running list in one word where it is the one that is meant."""
        return ALL_RUNNING if sequence_ids == running else sequence_ids
