"""Guarantee: whoever runs the copies of a step, the server or the worker, each pass starts from exactly its state."""

import mmap
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from service.servers import BLOCK_TOKENS, CONV_ROWS, Server, Servers
from statepool import Client, Execution, Session, StepBuilder, StepOutcome
from statepool.host import CopyEngine, HostEngine
from statepool.loadtest.states import NO_TOKENS, PrefixStates, extend_digests

SPEC = 2
STEPS = 60


@dataclass
class Request:
    """One sequence as its engine knows it."""

    tokens: list[int]
    """Prompt and accepted tokens."""
    running: list[int] = field(default_factory=list)
    """Block of the running column and of those after it."""
    num_accepted: int = 1
    """Where in them the state is."""
    num_tokens: int = 0
    """Tokens of the pass under way."""
    drafts: list[int] = field(default_factory=list)
    """Drafts of the pass under way."""

    def digests(self, drafts: list[int]) -> list[int]:
        """Names all prefixes of the tokens and some drafts."""
        digests = [NO_TOKENS]
        extend_digests(digests, [*self.tokens, *drafts])
        return digests


class Engine:
    """An engine whose worker maps the arena and computes on it as a model would."""

    def __init__(self, server: Server, client: Client, session: Session, execution: Execution, seed: int) -> None:
        pool = client.get_pool()
        with (server.state_dir / "rank0.arena").open("r+b") as arena_file:
            arena = np.frombuffer(mmap.mmap(arena_file.fileno(), 0), np.uint8)
        self._copies: CopyEngine = HostEngine(arena, pool.layout)
        self._blocks = arena.reshape(pool.block_count, -1)
        self._num_spec = pool.num_spec
        self._states = PrefixStates(pool.layout.block, pool.num_spec, seed=1)
        self._execution = execution
        self._random = random.Random(seed)
        self._requests: dict[int, Request] = {}
        self.builder = StepBuilder(BLOCK_TOKENS, namespace=f"executions.{seed}")
        self.scheduler = session.scheduler(execution=execution)
        self.wrong: list[str] = []

    def admit(self, sequence: int, tokens: list[int]) -> None:
        """Begins a sequence with the next step."""
        self._requests[sequence] = Request(list(tokens))
        self.builder.admit(sequence, tokens)

    def finish(self, sequence: int) -> None:
        """Ends a sequence with the next step, whatever it is doing."""
        del self._requests[sequence]
        self.builder.finish(sequence)

    def step(self) -> StepOutcome:
        """Asks for a step of all sequences, and lets the worker do its part at once."""
        outcome, work = self.ask(list(self._requests))
        work()
        return outcome

    def ask(self, batch: list[int], settled_step: int | None = None) -> tuple[StepOutcome, Callable[[], None]]:
        """Commits the passes of a batch and schedules it again.

        Args:
            batch: Sequences; those that are not admitted yet are passed over.
            settled_step: As for `Scheduler.step`.

        Returns:
            The outcome, and the worker's part: its copies and the passes.
        """
        committed = [sequence for sequence in batch if self._requests[sequence].num_tokens]
        for sequence in committed:
            self._commit(sequence, self._requests[sequence])
        admitted = {row.sequence_id for row in self.builder.step()["admit"]}
        for sequence in batch:
            if sequence not in admitted:
                self._schedule(sequence, self._requests[sequence])
        scheduled = self.builder.scheduled
        outcome = self.scheduler.step(**self.builder.step(), settled_step=settled_step)
        self._follow(outcome, committed, scheduled)
        self.builder.applied(outcome)
        jobs = [
            (sequence, self.builder.num_computed(sequence), replace(self._requests[sequence])) for sequence in scheduled
        ]
        return outcome, lambda: self._work(outcome, jobs)

    def _work(self, outcome: StepOutcome, jobs: list[tuple[int, int, Request]]) -> None:
        if self._execution is Execution.WORKER:
            self._copies.copy(outcome.post_copies.plan())
            self._copies.zero(outcome.zeroed_block_ids)
            self._copies.copy(outcome.pre_copies.plan())
        for sequence, computed, request in jobs:
            self._compute(sequence, computed, request)

    def _commit(self, sequence: int, request: Request) -> None:
        prefills = self.builder.num_left(sequence) > request.num_tokens
        accepted = [] if prefills else request.drafts[: self._random.randint(0, len(request.drafts))]
        news = [] if prefills else [*accepted, self._random.randrange(1000)]
        self.builder.commit(sequence, news)
        request.tokens = [*request.tokens, *news]
        request.num_accepted, request.num_tokens = max(1, len(news)), 0

    def _schedule(self, sequence: int, request: Request) -> None:
        if self.builder.num_left(sequence) > 1:
            budget = self._random.choice([5, BLOCK_TOKENS, 3 * BLOCK_TOKENS])
            request.num_tokens, request.drafts = self.builder.schedule_prefill(sequence, budget), []
        else:
            request.drafts = [self._random.randrange(1000) for _ in range(self._random.randint(0, self._num_spec))]
            request.num_tokens = 1 + len(request.drafts)
            self.builder.schedule(sequence, request.num_tokens, len(request.drafts))

    def _follow(self, outcome: StepOutcome, committed: list[int], scheduled: list[int]) -> None:
        """Takes in where states are now."""
        in_place = outcome.post_copies.src_columns == outcome.post_copies.dst_columns
        moved = [committed[row] for row in outcome.post_copies.rows[in_place].tolist()]
        moved += [scheduled[row] for row in outcome.pre_copies.rows.tolist()]
        for sequence in moved:
            if sequence in self._requests:
                self._requests[sequence].num_accepted = 1
        for row, blocks in zip(outcome.tables.rows.tolist(), outcome.tables.block_ids.tolist(), strict=True):
            self._requests[scheduled[row]].running = blocks

    def _compute(self, sequence: int, computed: int, request: Request) -> None:
        """Compares every byte of the state before a pass, and writes those after each of its tokens."""
        running = request.running
        image = self._blocks[running[0]].copy()
        image[: self._states.conv_offset] = self._blocks[running[request.num_accepted - 1]][: self._states.conv_offset]
        wrong = self._states.difference(image, request.digests([]), computed, request.num_accepted)
        if wrong:
            self.wrong.append(f"{wrong} of sequence {sequence} after {computed} tokens")
        drafts = request.drafts
        images = self._states.after_pass(
            request.digests(drafts), computed + request.num_tokens - len(drafts), len(drafts)
        )
        self._blocks[running[: len(images)]] = images


@contextmanager
def engine(servers: Servers, execution: Execution, seed: int, num_spec: int = SPEC) -> Iterator[Engine]:
    """Runs an engine on a server that others use too."""
    flags = ("--num-spec", str(num_spec), "--tp-size", "1", "--blocks", "33")
    server = servers.shared(*flags, conv_shape=(CONV_ROWS, 8))
    with server.client() as client, client.create_session(60.0) as session:
        running = Engine(server, client, session, execution, seed)
        with running.scheduler:
            yield running


@pytest.mark.parametrize("execution", list(Execution))
@pytest.mark.parametrize("seed", range(5))
def test_every_pass_starts_from_its_state(servers: Servers, execution: Execution, seed: int) -> None:
    """Prefills over several blocks, rejected drafts, aborts under way and prefix hits never leave a wrong byte."""
    found = []
    with engine(servers, execution, seed) as running:
        running.admit(1, list(range(41)))
        running.admit(2, list(range(100, 121)))
        for number in range(STEPS):
            if number % 8 == 7:  # whatever it is doing; the new one begins as sequence 1 did
                running.finish(2)
                running.admit(2, list(range(41)))
            found += running.step().admissions.num_computed_tokens.tolist()

    assert running.wrong == []
    assert 2 * BLOCK_TOKENS in found


@pytest.mark.parametrize("execution", list(Execution))
@pytest.mark.parametrize(("seed", "num_spec"), [(0, 0), (1, 0), (2, 0), (3, SPEC), (4, SPEC), (5, SPEC)])
def test_two_half_batches_overlap(servers: Servers, execution: Execution, seed: int, num_spec: int) -> None:
    """While one half is asked for its next step the other's is under way, and aborted sequences are written to the end.

    The worker does its part of a step only when the next step was answered, which is planned without it.
    """
    halves, under_way = [[1, 2], [3, 4]], None
    with engine(servers, execution, seed, num_spec) as running:
        for sequence in (1, 2, 3, 4):
            running.admit(sequence, list(range(sequence, sequence + 37)))
        running.step()
        for number in range(4 * STEPS):
            batch = halves[number % 2]
            if number % 4 == 3:  # of the half whose pass is under way
                aborted = halves[1 - number % 2].pop()
                running.finish(aborted)
                running.admit(aborted + 100, list(range(37)))
                halves[1 - number % 2].append(aborted + 100)
            last_step = number + 1
            _, work = running.ask(batch, settled_step=last_step - 1 if number else last_step)
            if under_way is not None:
                under_way()
            under_way = work
            assert running.wrong == []


def test_comparison_can_fail(servers: Servers) -> None:
    """A worker that leaves the copies of a step out is found out."""
    with engine(servers, Execution.WORKER, seed=9) as running:
        running._copies = _Nothing()  # noqa: SLF001 - the fault under test
        running.admit(1, list(range(41)))
        for _ in range(STEPS):
            running.step()

    assert running.wrong


class _Nothing:
    """A copy engine that does nothing."""

    def copy(self, plan: object) -> None:
        """Copies nothing."""

    def zero(self, block_ids: np.ndarray) -> None:
        """Zeroes nothing."""
