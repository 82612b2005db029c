"""Random engine steps that an engine might ask, and some that none should: a string of bytes decides."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from statepool.refs import BlockRefs
from statepool_server.sequences.requests import StepRequest
from support.align_model import AlignModel, ModelSteps
from support.steps import NO_BOUND, Admit, Commit, Run, admissions_of, commits_of, ints, schedules_of

T = TypeVar("T")

IDS = range(7)
"""Ids of sequences; few, so that they are used again."""


class Choices:
    """Decisions made by bytes; where they run out, and where they are 0, the first and commonest option."""

    def __init__(self, data: bytes) -> None:
        self._data = iter(data)

    def below(self, limit: int) -> int:
        """Chooses a number."""
        return next(self._data, 0) % limit

    def pick(self, options: Sequence[T]) -> T:
        """Chooses one."""
        return options[self.below(len(options))]

    def rarely(self, one_in: int) -> bool:
        """Says yes once in so many times."""
        return self.below(one_in) == one_in - 1


@dataclass(frozen=True)
class Tokens:
    """What a sequence reads and writes: all sequences of a stream agree, and streams 0 and 1 do for two blocks."""

    stream: int
    prompt: int

    def name(self, tokens: int, block_tokens: int) -> bytes:
        """Names the first tokens: equal prefixes have equal names."""
        stream = 0 if self.stream == 1 and tokens <= 2 * block_tokens else self.stream
        return b"%d:%d" % (stream, tokens)

    def hashes(self, block_tokens: int) -> list[bytes]:
        """Names the full blocks of the prompt."""
        return [self.name(end, block_tokens) for end in range(block_tokens, self.prompt + 1, block_tokens)]


@dataclass
class StepDraft:
    """A step in the making."""

    choices: Choices
    model: AlignModel
    session_id: int
    tokens: dict[tuple[int, int], Tokens]
    """What every sequence reads, by session and sequence."""
    admitted: dict[int, Tokens] = field(default_factory=dict)
    """What the sequences read that the step admits."""

    def request(self) -> StepRequest:
        """Makes up a step that an engine might ask: most of them can be taken."""
        steps, choices = self.model.steps.get(self.session_id, ModelSteps()), self.choices
        by_worker = (self.session_id % 2 == 0) != choices.rarely(8)
        lag = choices.below(3) if by_worker or choices.rarely(6) else 0
        commits = self._commits(steps)
        finishes = [i for i in steps.sequences if choices.rarely(9)]
        admits = self._admissions(steps, finishes)
        idle = [i for i, sequence in steps.sequences.items() if i not in finishes and sequence.outstanding is None]
        idle += [row.sequence for row in commits if row.sequence not in finishes]
        runs = [self._run(steps, i) for i in (*idle, *(row.sequence for row in admits)) if not choices.rarely(5)]
        listed = [i for i in steps.running if i not in finishes]
        repeat = choices.rarely(3) and set(listed) <= set(idle)
        return StepRequest(
            steps.last_step + 1,
            max(steps.last_step - lag, 0),
            by_worker,
            choices.rarely(3),
            commits_of(commits, all_running=bool(commits) and [row.sequence for row in commits] == steps.running),
            ints(finishes),
            admissions_of(admits),
            schedules_of([self._run(steps, i) for i in listed], all_running=True) if repeat else schedules_of(runs),
        )

    def decode(self, *, listed: bool) -> StepRequest:
        """Lets each running sequence commit its token and decode one more: the commonest step of all.

        Args:
            listed: Whether sequences are named by their ids.
        """
        steps = self.model.steps.get(self.session_id, ModelSteps())
        rows = steps.running if listed or self.choices.rarely(2) else steps.running[:1]
        return StepRequest(
            steps.last_step + 1,
            max(steps.last_step - self.choices.below(3), 0),
            self.session_id % 2 == 0,
            commits=commits_of([Commit(i) for i in rows], all_running=not listed),
            schedules=schedules_of([Run(i) for i in rows], all_running=not listed),
        )

    def _commits(self, steps: ModelSteps) -> list[Commit]:
        running = [i for i in steps.running if steps.sequences[i].outstanding]
        waiting = [*running, *(i for i, s in steps.sequences.items() if s.outstanding and i not in running)]
        return [self._commit(steps, i) for i in waiting if not self.choices.rarely(5)]

    def _commit(self, steps: ModelSteps, sequence_id: int) -> Commit:
        sequence, block_tokens = steps.sequences[sequence_id], self.model.block_tokens
        assert sequence.outstanding is not None
        drafts = sequence.outstanding.drafts
        accepted = 1 + drafts - self.choices.below(1 + drafts)
        written = sequence.num_computed + sequence.outstanding.tokens - drafts
        boundary = (written + accepted - 1) // block_tokens * block_tokens
        if boundary < written or self.choices.rarely(5):
            return Commit(sequence_id, accepted)
        name = self._tokens(sequence_id).name(boundary, block_tokens)
        return Commit(sequence_id, accepted, boundary, name)

    def _admissions(self, steps: ModelSteps, finishes: list[int]) -> list[Admit]:
        wanted = self.choices.pick([1, 0, 0, 2, 0, 3])
        unused = [i for i in IDS if i not in steps.sequences or i in finishes]
        return [self._admit(unused.pop(self.choices.below(len(unused)))) for _ in range(min(wanted, len(unused)))]

    def _admit(self, sequence_id: int) -> Admit:
        choices, block_tokens = self.choices, self.model.block_tokens
        tokens = Tokens(choices.below(3), 1 + choices.below(block_tokens * choices.pick([1, 2, 6])))
        self.admitted[sequence_id] = tokens
        ready = self._importable()
        if ready and choices.rarely(2):
            seen = 1 + choices.below(3 * block_tokens)
            return Admit(sequence_id, tokens.prompt, imported=(seen, choices.pick(ready)))
        bound = choices.below(3 * block_tokens) if choices.rarely(4) else NO_BOUND
        return Admit(sequence_id, tokens.prompt, tokens.hashes(block_tokens), bound, choices.pick(["m", "m", "m", "n"]))

    def _tokens(self, sequence_id: int) -> Tokens:
        return self.tokens.get((self.session_id, sequence_id), Tokens(0, 1))

    def _importable(self) -> list[tuple[int, int]]:
        blocks, session_id = self.model.blocks, self.session_id
        return [
            (i, block.generation)
            for i, block in blocks.items()
            if block.references == {session_id: 1}
            and not block.committed
            and not self.model.in_sequences(session_id, i)
        ]

    def _run(self, steps: ModelSteps, sequence_id: int) -> Run:
        known = None if sequence_id in self.admitted else steps.sequences.get(sequence_id)
        tokens = self.admitted.get(sequence_id) or self._tokens(sequence_id)
        computed = known.num_computed if known is not None else 0
        if computed < tokens.prompt or self.choices.rarely(7):
            return Run(
                sequence_id,
                self.choices.pick([self.model.block_tokens, 1 + self.choices.below(self.model.block_tokens * 3)]),
            )
        drafts = self.model.spec - self.choices.below(1 + self.model.spec)
        return Run(sequence_id, 1 + drafts, drafts)


Corruption = Callable[[StepRequest, Choices], StepRequest]


def _numbers(request: StepRequest, choices: Choices) -> StepRequest:
    off = choices.pick([1, -1, 7])
    return (
        request._replace(step=request.step + off) if choices.below(2) else request._replace(settled_step=request.step)
    )


def _commit_rows(request: StepRequest, choices: Choices) -> StepRequest:
    commits = request.commits
    ids = [] if commits.sequence_ids is None else commits.sequence_ids.tolist()
    bad = [[*ids, 99], [*ids, *ids[:1]], [*ids, *(i for i in IDS if i not in ids)]]
    accepted = [*commits.accepted_tokens.tolist(), 1, 1, 1, 1, 1, 1, 1]
    chosen = choices.pick(bad)
    return request._replace(
        commits=replace(commits, sequence_ids=ints(chosen), accepted_tokens=ints(accepted[: len(chosen)]))
    )


def _accepted(request: StepRequest, choices: Choices) -> StepRequest:
    commits = request.commits
    accepted = commits.accepted_tokens.copy()
    if choices.rarely(4) or not len(accepted):
        accepted = np.append(accepted, [1, 1])
    else:
        accepted[choices.below(len(accepted))] += choices.pick([1, -1, 5, -(2**40)])
    return request._replace(commits=replace(commits, accepted_tokens=accepted))


def _hashes(request: StepRequest, choices: Choices) -> StepRequest:
    """Names a boundary of one row: perhaps the wrong one, perhaps of no row."""
    row, boundary = choices.pick([0, 3, 90]), choices.pick([4, 1, 16, 0])
    return request._replace(
        commits=replace(request.commits, hash_rows=ints([row]), boundary_tokens=ints([boundary]), prefix_hashes=[b"x"]),
    )


def _finishes(request: StepRequest, choices: Choices) -> StepRequest:
    finishes = request.finishes.tolist()
    return request._replace(finishes=ints([*finishes, *choices.pick([[99], finishes, list(IDS)])]))


def _admission_rows(request: StepRequest, choices: Choices) -> StepRequest:
    admissions = request.admissions
    if not len(admissions):
        known = request.schedules.sequence_ids
        return request._replace(
            admissions=admissions_of([Admit(int(known[0]) if known is not None and len(known) else -1)])
        )
    row = choices.below(len(admissions))
    column, value = choices.pick(
        [
            ("sequence_ids", choices.pick([-5, *IDS])),
            ("prompt_tokens", choices.pick([0, 1, -3, 2**31])),
            ("max_hit_tokens", -1),
            ("imported_tokens", choices.pick([0, 2**31])),
        ]
    )
    values = getattr(admissions, column).copy()
    if len(values):
        values[row % len(values)] = value
    return request._replace(admissions=replace(admissions, **{column: values}))


def _imports(request: StepRequest, choices: Choices) -> StepRequest:
    """Imports a block in place of a hit, whatever block it is; or one in two rows."""
    admissions = request.admissions
    if not len(admissions) or len(admissions.import_rows):
        refs = admissions.imported_blocks
        return request._replace(
            admissions=replace(admissions, imported_blocks=BlockRefs(refs.block_ids, refs.generations + 2))
        )
    rows = [
        Admit(i, 5, imported=(3, (1 + choices.below(12), 1 + 2 * choices.below(4))))
        for i in admissions.sequence_ids.tolist()
    ]
    return request._replace(admissions=admissions_of(rows))


def _schedule_rows(request: StepRequest, choices: Choices) -> StepRequest:
    schedules = request.schedules
    ids = [] if schedules.sequence_ids is None else schedules.sequence_ids.tolist()
    chosen = choices.pick([[*ids, 99], [*ids, *ids[:1]], list(IDS), [*ids, *request.finishes.tolist()]])
    return request._replace(schedules=schedules_of([Run(i) for i in chosen]))


def _tokens(request: StepRequest, choices: Choices) -> StepRequest:
    schedules = request.schedules
    column = choices.pick(["num_tokens", "num_draft_tokens"])
    values = getattr(schedules, column).copy()
    if choices.rarely(4) or not len(values):
        values = np.append(values, [1, 1])
    else:
        values[choices.below(len(values))] += choices.pick([1, -1, 3, -(2**40), 2**31])
    return request._replace(schedules=replace(schedules, **{column: values}))


def _all_running(request: StepRequest, choices: Choices) -> StepRequest:
    if choices.below(2):
        return request._replace(schedules=replace(request.schedules, sequence_ids=None))
    return request._replace(commits=replace(request.commits, sequence_ids=None))


CORRUPTIONS: list[Corruption] = [
    *(_numbers, _commit_rows, _accepted, _hashes, _finishes, _admission_rows),
    *(_imports, _schedule_rows, _tokens, _all_running),
]
"""Ways to spoil a step; a spoilt one may be good by chance."""
