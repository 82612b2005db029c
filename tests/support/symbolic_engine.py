"""An engine with its worker on symbolic memory: it knows of its sequences only what steps have answered."""

from collections import deque
from dataclasses import dataclass, field

from statepool.refs import BlockRefs
from statepool_server.pool import Pool
from statepool_server.sequences.outcomes import StepOutcome
from statepool_server.sequences.requests import StepRequest
from support.step_choices import Choices, Tokens
from support.steps import NO_BOUND, Admit, Commit, Run, admissions_of, commits_of, copy_rows, ints, schedules_of
from support.symbolic_memory import Pass, SymbolicMemory

IDS = range(6)


@dataclass
class EngineSequence:
    """A sequence as its scheduler knows it."""

    tokens: Tokens
    computed: int
    offset: int = 0
    """Accepted tokens of the last pass, less one, unless they were shifted away."""
    blocks: tuple[int, ...] = ()
    outstanding: Pass | None = None


@dataclass(eq=False)
class StepOfWorker:
    """What the worker does for a step, in this order."""

    step: int
    touched: BlockRefs
    """All blocks that it reads or writes, as they were when the step was planned."""
    outcome: StepOutcome | None
    """The copies and the zeroing, unless the server does them."""
    passes: list[Pass]


@dataclass
class StepPlan:
    """A step that is about to be asked, row by row."""

    commits: list[Commit] = field(default_factory=list)
    finishes: list[int] = field(default_factory=list)
    admits: list[Admit] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    texts: dict[int, Tokens] = field(default_factory=dict)
    """What the sequences read that the step admits."""


class SymbolicEngine:
    """Steps of one session, and a worker that does them in order, but later.

    Attributes:
        queue: Steps that the worker has still to do.
    """

    def __init__(self, pool: Pool, memory: SymbolicMemory, session: tuple[int, int], *, by_worker: bool) -> None:
        self._pool = pool
        self._memory = memory
        self._session = session
        self._by_worker = by_worker
        self._last_step = 0
        self._done = 0
        self._sequences: dict[int, EngineSequence] = {}
        self._ran: set[Pass] = set()
        self._imports: list[tuple[tuple[int, int], Tokens, int]] = []
        self._server_work: tuple[StepOutcome, StepOfWorker] | None = None
        self.queue: deque[StepOfWorker] = deque()

    def receive(self, choices: Choices) -> None:
        """Allocates a block and writes a state into it that has come from another pool."""
        if self._pool.usage().free == 0:
            return
        refs = self._pool.allocate(*self._session, 1)
        tokens, computed = self._text(choices), 1 + choices.below(3 * self._memory.block_tokens)
        (block,), (generation,) = refs.block_ids.tolist(), refs.generations.tolist()
        self._memory.put(block, tokens, computed)
        self._imports.append(((block, generation), tokens, computed))

    def work(self) -> None:
        """Lets the worker do its next step."""
        if not self.queue:
            return
        step = self.queue.popleft()
        same = self._pool.blocks.generations[step.touched.block_ids] == step.touched.generations
        assert same.all(), "a block was reused before the step was settled"
        if step.outcome is not None:
            self._copy(step.outcome)
        for forward in step.passes:
            self._memory.run(forward)
            self._ran.add(forward)
        self._done = step.step

    def serve(self) -> None:
        """Lets the server do what it owes to the last step."""
        if self._server_work is None:
            return
        outcome, step = self._server_work
        self._server_work = None
        assert outcome.work is not None
        self._copy(outcome)
        self._pool.finish_work(outcome.work)
        self.queue.append(step)

    def step(self, choices: Choices) -> None:
        """Asks for the next step; raises what the pool raises."""
        self.serve()
        lag = choices.below(3) if choices.rarely(3) else 0
        plan = self._plan(choices)
        request = StepRequest(
            self._last_step + 1,
            max(self._done - lag, 0),
            self._by_worker,
            choices.rarely(3),
            commits_of(plan.commits),
            ints(plan.finishes),
            admissions_of(plan.admits),
            schedules_of(plan.runs),
        )
        outcome = self._pool.step(*self._session, request)
        self._last_step += 1
        self._commit(plan, outcome)
        self._admit(plan, outcome)
        self._hand_over(outcome, self._schedule(plan, outcome, choices))

    # What to ask

    def _plan(self, choices: Choices) -> StepPlan:
        plan = StepPlan()
        idle = []
        for sequence_id, sequence in self._sequences.items():
            if choices.rarely(9):
                plan.finishes.append(sequence_id)
            if sequence.outstanding is None:
                idle.append(sequence_id)
            elif sequence.outstanding in self._ran and not choices.rarely(6):
                plan.commits.append(self._result(sequence_id, sequence, choices))
                idle.append(sequence_id)
        unused = [i for i in IDS if i not in self._sequences or i in plan.finishes]
        for sequence_id in unused[: choices.pick([1, 0, 2])]:
            plan.admits.append(self._admission(sequence_id, plan, choices))
        live = [i for i in idle if i not in plan.finishes]
        plan.runs = [self._run(i, plan, choices) for i in (*live, *plan.texts) if not choices.rarely(6)]
        return plan

    def _result(self, sequence_id: int, sequence: EngineSequence, choices: Choices) -> Commit:
        ran = sequence.outstanding
        assert ran is not None
        written, block_tokens = ran.computed + ran.num_tokens - ran.drafts, self._memory.block_tokens
        boundary = (written + ran.accepted - 1) // block_tokens * block_tokens
        if boundary < written or choices.rarely(6):
            return Commit(sequence_id, ran.accepted)
        return Commit(sequence_id, ran.accepted, boundary, sequence.tokens.name(boundary, block_tokens))

    def _admission(self, sequence_id: int, plan: StepPlan, choices: Choices) -> Admit:
        taken = [row.imported for row in plan.admits]
        ready = [(ref, text, n) for ref, text, n in self._imports if (n, ref) not in taken]
        if ready and choices.rarely(2):
            ref, plan.texts[sequence_id], computed = ready[0]
            return Admit(sequence_id, computed + 1, imported=(computed, ref))
        tokens = plan.texts[sequence_id] = self._text(choices)
        bound = choices.below(3 * self._memory.block_tokens) if choices.rarely(4) else NO_BOUND
        return Admit(sequence_id, tokens.prompt, tokens.hashes(self._memory.block_tokens), bound)

    def _text(self, choices: Choices) -> Tokens:
        return Tokens(choices.below(3), 1 + choices.below(self._memory.block_tokens * choices.pick([1, 2, 6])))

    def _run(self, sequence_id: int, plan: StepPlan, choices: Choices) -> Run:
        known = None if sequence_id in plan.texts else self._sequences[sequence_id]
        if known is None or known.computed < known.tokens.prompt or choices.rarely(7):
            block_tokens = self._memory.block_tokens
            return Run(sequence_id, choices.pick([block_tokens, 1 + choices.below(3 * block_tokens)]))
        drafts = self._memory.spec - choices.below(1 + self._memory.spec)
        return Run(sequence_id, 1 + drafts, drafts)

    # What was answered

    def _commit(self, plan: StepPlan, outcome: StepOutcome) -> None:
        shifted = {row for row, src, dst, *_ in copy_rows(outcome.post_copies) if src == dst}
        for row, commit in enumerate(plan.commits):
            sequence = self._sequences[commit.sequence]
            ran, sequence.outstanding = sequence.outstanding, None
            assert ran is not None
            sequence.computed = ran.computed + ran.num_tokens - ran.drafts + ran.accepted - 1
            sequence.offset = 0 if row in shifted else ran.accepted - 1
        for sequence_id in plan.finishes:
            del self._sequences[sequence_id]

    def _admit(self, plan: StepPlan, outcome: StepOutcome) -> None:
        for admit, computed, block in zip(plan.admits, outcome.admitted_tokens, outcome.admitted_blocks, strict=False):
            tokens = plan.texts[admit.sequence]
            assert block == 0 or self._memory.holds(int(block), tokens, int(computed))
            self._sequences[admit.sequence] = EngineSequence(tokens, int(computed))
            if admit.imported is not None:
                self._imports = [item for item in self._imports if item[0] != admit.imported[1]]

    def _schedule(self, plan: StepPlan, outcome: StepOutcome, choices: Choices) -> list[Pass]:
        width, blocks = 1 + self._memory.spec, outcome.tables.blocks.block_ids.tolist()
        changed = {
            row: tuple(blocks[at * width : (at + 1) * width]) for at, row in enumerate(outcome.tables.rows.tolist())
        }
        moved = {row for row, *_ in copy_rows(outcome.pre_copies)}
        left_out = {row.sequence for row in plan.admits[len(outcome.admitted_tokens) :]}
        passes = []
        for row, run in enumerate(plan.runs):
            if run.sequence in left_out:
                continue
            sequence = self._sequences[run.sequence]
            sequence.blocks = changed.get(row, sequence.blocks)
            sequence.offset = 0 if row in moved else sequence.offset
            sequence.outstanding = Pass(
                sequence=run.sequence,
                tokens=sequence.tokens,
                computed=sequence.computed,
                num_tokens=run.tokens,
                drafts=run.drafts,
                accepted=1 + run.drafts - choices.below(1 + run.drafts),
                offset=sequence.offset,
                blocks=sequence.blocks,
            )
            passes.append(sequence.outstanding)
        return passes

    def _hand_over(self, outcome: StepOutcome, passes: list[Pass]) -> None:
        touched = [block for forward in passes for block in forward.blocks]
        if self._by_worker:
            copies = copy_rows(outcome.post_copies) + copy_rows(outcome.pre_copies)
            touched += [block for row in copies for block in row[4:]] + outcome.zeroed_blocks.tolist()
        refs = self._pool.blocks.refs(ints(touched))
        step = StepOfWorker(outcome.step, refs, outcome if self._by_worker else None, passes)
        if outcome.work is None:
            self.queue.append(step)
        else:
            self._server_work = outcome, step

    def _copy(self, outcome: StepOutcome) -> None:
        self._memory.copy(copy_rows(outcome.post_copies))
        self._memory.zero(outcome.zeroed_blocks.tolist())
        self._memory.copy(copy_rows(outcome.pre_copies))
