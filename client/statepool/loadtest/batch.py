"""The continuous batch of a simulated engine: what each step does to which sequences. No I/O."""

import random
import time
from collections import deque
from dataclasses import dataclass

from statepool.descriptions import Pool
from statepool.loadtest.record import Recorder
from statepool.loadtest.requests import TOKEN_IDS, Request
from statepool.loadtest.slices import TTFT
from statepool.outcomes import StepOutcome
from statepool.refs import BlockRefs
from statepool.steps import StepBuilder, StepColumns

PREFILL_BLOCKS = 2
"""Blocks of prompt tokens that a step computes at most, over all sequences."""
ACCEPTANCE = 0.7
"""Chance of each draft to be accepted if all before it were."""


@dataclass(frozen=True, slots=True)
class Pass:
    """A forward pass of one sequence."""

    request: Request
    num_computed: int
    """Tokens that the state has seen before it."""
    num_tokens: int
    """Tokens of the pass without drafts."""
    drafts: list[int]
    """Drafted tokens after them."""

    @property
    def num_written(self) -> int:
        """Tokens that the state has seen after it, if no draft is accepted."""
        return self.num_computed + self.num_tokens


class Batch:
    """Sequences that wait and run, and the step that is being built.

    A round is `plan`, `step` until it is applied (`preempt` when it is refused), `applied`, `sample`.

    Attributes:
        waiting: Requests that are not admitted, the next one first.
        running: Requests that are, the newest last.
    """

    def __init__(self, pool: Pool, max_sequences: int, namespace: str, seed: str, recorder: Recorder) -> None:
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self._admitted: list[Request] = []
        self._committed: list[Request] = []
        self._passes: dict[int, Pass] = {}
        self._builder = StepBuilder(pool.block_tokens, namespace=namespace)
        self._pool = pool
        self._max_sequences = max_sequences
        self._random = random.Random(seed)  # noqa: S311 - traffic, not secrets
        self._recorder = recorder
        self._room = pool.capacity

    def __len__(self) -> int:
        return len(self.waiting) + len(self.running)

    def plan(self, *, may_admit: bool = True) -> None:
        """Schedules what runs, and admits what there may be room for.

        Args:
            may_admit: Whether to admit anything.
        """
        budget = PREFILL_BLOCKS * self._pool.block_tokens
        for request in self.running:
            budget -= self._schedule(request, budget)
        first_blocks = 2 + self._pool.num_spec
        while may_admit and self.waiting and len(self.running) + len(self._admitted) < self._max_sequences:
            is_alone = not self.running and not self._admitted
            if not is_alone and self._room < first_blocks * (1 + len(self._admitted)):
                break
            request = self.waiting.popleft()
            self._builder.admit(request.sequence_id, request.tokens)
            self._admitted.append(request)

    def step(self) -> StepColumns:
        """Gives the arguments of `Scheduler.step`."""
        return self._builder.step()

    def preempt(self) -> bool:
        """Takes the newest sequence out of the step, to be admitted again later.

        Returns:
            Whether there was one.
        """
        if self._admitted:
            request = self._admitted.pop()
        elif self.running:
            request = self.running.pop()
            self._recorder.count("preemptions")
        else:
            return False
        self._builder.finish(request.sequence_id)
        self._passes.pop(request.sequence_id, None)
        self.waiting.appendleft(request)
        return True

    def applied(self, outcome: StepOutcome) -> list[Pass]:
        """Takes in where states stand now.

        Returns:
            The forward passes to run.
        """
        self._builder.applied(outcome)
        passes = list(self._passes.values())
        posts, tables = outcome.post_copies, outcome.tables
        for row in posts.rows[posts.src_columns == posts.dst_columns].tolist():
            self._committed[row].num_accepted = 1
        for index, row in enumerate(tables.rows.tolist()):
            passes[row].request.running = tables.blocks(index)
        for row in outcome.pre_copies.rows.tolist():
            passes[row].request.num_accepted = 1
        self._begin(outcome)
        self._committed = []
        self._room = outcome.usage.free_blocks + outcome.usage.evictable_blocks
        return passes

    def sample(self) -> None:
        """Takes the results of the passes into the next step."""
        for run in self._passes.values():
            request = run.request
            self._recorder.count("computed_tokens", run.num_tokens)
            if run.num_written < len(request.tokens):
                self._commit(request, [])
            elif request.is_aborted and request.generated + 1 + len(run.drafts) >= request.output_tokens:
                self._end(request, "aborted")
            else:
                self._generate(run)
        self._passes = {}

    def _schedule(self, request: Request, budget: int) -> int:
        """Schedules a pass.

        Returns:
            Prompt tokens that it takes from the budget.
        """
        sequence_id = request.sequence_id
        num_computed = self._builder.num_computed(sequence_id)
        if self._builder.num_left(sequence_id) > 1:
            tokens = self._builder.schedule_prefill(sequence_id, budget)
            if tokens:
                self._passes[sequence_id] = Pass(request, num_computed, tokens, [])
            return tokens
        drafts = self._random.choices(range(TOKEN_IDS), k=self._random.randint(0, self._pool.num_spec))
        self._builder.schedule(sequence_id, 1 + len(drafts), len(drafts))
        self._passes[sequence_id] = Pass(request, num_computed, 1, drafts)
        return 0

    def _begin(self, outcome: StepOutcome) -> None:
        for request, hit in zip(self._admitted, outcome.admissions.num_computed_tokens.tolist(), strict=True):
            request.running, request.num_accepted = BlockRefs.empty(), 1
            self._recorder.count("prompt_tokens", len(request.tokens))
            self._recorder.count("hit_tokens", hit)
        self.running += self._admitted
        self._admitted = []

    def _generate(self, run: Pass) -> None:
        request, accepted = run.request, 0
        while accepted < len(run.drafts) and self._random.random() < ACCEPTANCE:
            accepted += 1
        if not request.generated:
            self._recorder.latency(TTFT, time.perf_counter_ns() - request.arrived_ns)
        self._recorder.count("generated_tokens", accepted + 1)
        self._recorder.count("computed_tokens", accepted)
        self._commit(request, [*run.drafts[:accepted], self._random.randrange(TOKEN_IDS)])
        if request.generated >= request.output_tokens:
            self._end(request, "finished")

    def _commit(self, request: Request, token_ids: list[int]) -> None:
        self._builder.commit(request.sequence_id, token_ids)
        request.extend(token_ids)
        request.num_accepted = max(1, len(token_ids))
        self._committed.append(request)

    def _end(self, request: Request, how: str) -> None:
        self._builder.finish(request.sequence_id)
        self.running.remove(request)
        self._recorder.count(how)
