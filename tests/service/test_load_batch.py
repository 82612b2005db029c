"""Guarantee: a simulated engine's batch does what an engine does, and knows where the server keeps each state."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from service.servers import BLOCK_TOKENS, Servers
from statepool import ALL_RUNNING, Client, PoolExhaustedError, Scheduler, Session
from statepool.loadtest.batch import PREFILL_BLOCKS, Batch, Pass
from statepool.loadtest.options import AlignWorkload, LoadOptions
from statepool.loadtest.record import Recorder
from statepool.loadtest.requests import Request, RequestSource
from statepool.loadtest.slices import Slice

SPEC = 2
ROUNDS = 150
FEW_BLOCKS = 17
"""Fewer than the sequences of an engine grow to."""
WORKLOAD = AlignWorkload(engines=1, sequences=6, shared_blocks=1, prompt_tokens=24, output_tokens=40)


class Engine:
    """A batch, its requests and its scheduler; the test decides when a round goes on."""

    def __init__(self, client: Client, session: Session, scheduler: Scheduler, seed: int) -> None:
        pool = client.get_pool()
        options = LoadOptions(
            target="", duration=1.0, warmup=0.0, workload=WORKLOAD, rate=0.0, processes=1, verify=0.0, seed=seed
        )
        self.recorder = Recorder()
        self.recorder.start()
        self.batch = Batch(pool, WORKLOAD.sequences, options.namespace, f"{seed}", self.recorder)
        self.source = RequestSource(0, WORKLOAD, options, pool.block_tokens, len(pool.tp_ranks))
        self.requests: list[Request] = []
        self.preempted: list[Request] = []
        self._client = client
        self._session = session
        self._scheduler = scheduler

    def arrive(self, count: int) -> list[Request]:
        """Lets requests arrive."""
        arrived = [self.source.make(0) for _ in range(count)]
        self.batch.waiting.extend(arrived)
        self.requests += arrived
        return arrived

    def ask(self) -> list[Pass]:
        """Plans a step and sends it, without its newest sequences while it is refused; returns its passes."""
        self.batch.plan()
        while True:
            newest = self.batch.running[-1:]
            try:
                outcome = self._scheduler.step(**self.batch.step())
            except PoolExhaustedError:
                assert self.batch.preempt()
                self.preempted += [request for request in newest if request is self.batch.waiting[0]]
            else:
                return self.batch.applied(outcome)

    def kept(self) -> dict[int, tuple[int, int, int]]:
        """Lists the tokens computed, where the state stands, and the running block, as the server knows them."""
        pages = list(self._client.list_sequences(self._session.session_id))
        return {
            sequence: (computed, accepted, int(page.table(row)[column]) if column >= 0 else 0)
            for page in pages
            for row, (sequence, computed, accepted, column) in enumerate(
                zip(
                    page.sequence_ids.tolist(),
                    page.num_computed_tokens.tolist(),
                    page.num_accepted_tokens.tolist(),
                    page.running_columns.tolist(),
                    strict=True,
                )
            )
        }

    @property
    def counts(self) -> Counter[str]:
        """What happened so far."""
        return Slice.sum(map(Slice.from_json, self.recorder.to_json()["slices"])).counts


@contextmanager
def engine_on(servers: Servers, blocks: int, seed: int = 1) -> Iterator[Engine]:
    """Runs an engine on a server with a few blocks, and drops its sequences afterwards."""
    server = servers.shared("--num-spec", f"{SPEC}", "--blocks", f"{blocks}")
    with server.client() as client, client.create_session(60.0) as session, session.scheduler() as scheduler:
        yield Engine(client, session, scheduler, seed)


@pytest.fixture
def roomy(servers: Servers) -> Iterator[Engine]:
    """Gives an engine that has all the blocks it can use."""
    with engine_on(servers, 257) as engine:
        yield engine


def test_worker_reads_where_the_server_writes(servers: Servers) -> None:
    """Under preemption, hits and speculation, each pass begins with the tokens, block and acceptance of the server."""
    with engine_on(servers, FEW_BLOCKS) as engine:
        for _ in range(ROUNDS):
            engine.arrive(max(0, WORKLOAD.sequences - len(engine.batch)))
            passes = engine.ask()
            kept = engine.kept()
            for run in passes:
                request = run.request
                known = run.num_computed, request.num_accepted, int(request.running.block_ids[0])
                assert known == kept[request.sequence_id]
            engine.batch.sample()

    assert engine.counts["preemptions"] > 0
    assert engine.counts["hit_tokens"] > 0
    assert engine.counts["finished"] > 0


def test_newest_is_preempted_and_goes_on_later(servers: Servers) -> None:
    """A step that is refused loses its newest sequences; they come back, and end with all their tokens."""
    with engine_on(servers, FEW_BLOCKS) as engine:
        oldest, *_ = engine.arrive(12)
        tokens: dict[int, list[int]] = {}
        while engine.batch.running or engine.batch.waiting:
            engine.ask()
            for request in engine.requests:
                before = tokens.get(request.sequence_id, [])
                assert request.tokens[: len(before)] == before
                tokens[request.sequence_id] = request.tokens.copy()
            engine.batch.sample()
        counts = engine.counts

    assert engine.preempted
    assert oldest not in engine.preempted
    assert counts["finished"] + counts["aborted"] == len(engine.requests)
    for request in engine.requests:
        if not request.is_aborted:
            assert 0 <= request.generated - request.output_tokens <= SPEC


def test_prefill_is_cut_by_budget_and_boundaries(roomy: Engine) -> None:
    """Prompts are computed within a budget for all sequences; chunks end at boundaries, or with the prompt."""
    roomy.arrive(WORKLOAD.sequences)
    chunks = 0

    for _ in range(ROUNDS):
        known = {request.sequence_id: len(request.tokens) for request in roomy.requests}
        passes = roomy.ask()
        prefill = [run for run in passes if run.num_tokens > 1]
        assert sum(run.num_tokens for run in prefill) <= PREFILL_BLOCKS * BLOCK_TOKENS
        chunks += len([run for run in prefill if run.num_written < known[run.request.sequence_id]])
        roomy.batch.sample()

    assert chunks > 0


def test_unchanged_batch_is_named_in_a_word(roomy: Engine) -> None:
    """When nobody comes or goes, results and passes of all that run need no ids."""
    for request in roomy.arrive(3):
        request.output_tokens = 1000
    while any(not request.generated for request in roomy.requests):
        roomy.ask()
        roomy.batch.sample()
    roomy.ask()
    roomy.batch.sample()

    roomy.batch.plan()
    step = roomy.batch.step()

    assert step["commit"] is not None
    assert step["schedule"] is not None
    assert step["commit"].sequence_ids is step["schedule"].sequence_ids is ALL_RUNNING


def test_aborts_leave_a_pass_behind(roomy: Engine) -> None:
    """A request that is given up ends with its pass outstanding: its step finishes it and does not commit it."""
    given_up, other = roomy.arrive(2)
    given_up.is_aborted, other.is_aborted = True, False
    given_up.output_tokens, other.output_tokens = 3, 1000
    while roomy.counts["aborted"] == 0:
        roomy.ask()
        roomy.batch.sample()

    step = roomy.batch.step()

    assert step["finish"] == [given_up.sequence_id]
    assert step["commit"] is not None
    assert step["commit"].sequence_ids == [other.sequence_id]
    assert given_up.generated < given_up.output_tokens
    roomy.ask()
    assert list(roomy.kept()) == [other.sequence_id]
