"""A simulated engine: one session, one stream, one worker, and a continuous-batching loop over them."""

import asyncio
import random
import time

from statepool.aio.client import AsyncClient
from statepool.aio.scheduler import AsyncScheduler
from statepool.aio.session import AsyncSession
from statepool.copies import copied_bytes
from statepool.descriptions import Pool
from statepool.errors import PoolExhaustedError, StatepoolError
from statepool.loadtest.batch import Batch
from statepool.loadtest.forward import ForwardPasses
from statepool.loadtest.options import AlignWorkload, LoadOptions
from statepool.loadtest.pace import Arrivals
from statepool.loadtest.record import Recorder
from statepool.loadtest.requests import RequestSource
from statepool.loadtest.states import PrefixStates
from statepool.outcomes import StepOutcome

SESSION_TTL = 10.0
PAUSE_SECONDS = 0.01
"""How long an engine waits when others hold all blocks, or after an error."""


class Engine:
    """One of the concurrent engines of a load test."""

    def __init__(
        self,
        number: int,
        workload: AlignWorkload,
        options: LoadOptions,
        client: AsyncClient,
        pool: Pool,
        recorder: Recorder,
    ) -> None:
        self._number = number
        self._workload = workload
        self._options = options
        self._client = client
        self._pool = pool
        self._recorder = recorder
        self._states = PrefixStates(pool.layout.block, pool.num_spec, options.seed)
        self._source = RequestSource(number, workload, options, pool.block_tokens, len(pool.tp_ranks))
        self._arrivals: Arrivals | None = None
        self._admit_at = 0.0

    async def run(self, until_ns: int) -> None:
        """Serves requests until a time of ``time.perf_counter_ns``; an error costs the session, so nothing leaks."""
        if self._options.rate:
            rate = self._options.rate / self._workload.engines
            self._arrivals = Arrivals(rate, f"{self._options.seed}.{self._number}")
        while time.perf_counter_ns() < until_ns:
            try:
                with self._recorder.timed("open"):
                    session = await self._client.create_session(SESSION_TTL)
                async with session, session.scheduler() as scheduler:
                    await self._serve(session, scheduler, until_ns)
            except* StatepoolError:  # recorded where it happened
                await asyncio.sleep(PAUSE_SECONDS)

    async def _serve(self, session: AsyncSession, scheduler: AsyncScheduler, until_ns: int) -> None:
        seed = f"{self._options.seed}.{self._number}.{session.session_id}"
        batch = Batch(self._pool, self._workload.sequences, self._options.namespace, seed, self._recorder)
        passes = ForwardPasses(session, self._states, self._recorder)
        while time.perf_counter_ns() < until_ns:
            self._take_arrivals(batch)
            batch.plan(may_admit=self._may_admit(batch, scheduler))
            outcome = await self._step(scheduler, batch)
            async with asyncio.TaskGroup() as running:
                for run in batch.applied(outcome):
                    if run.request.rank_index is not None:
                        running.create_task(passes.run(run))
            batch.sample()
            if not batch.running:
                await asyncio.sleep(self._idle_seconds(batch, until_ns))
        self._recorder.count("waiting", len(batch.waiting))

    async def _step(self, scheduler: AsyncScheduler, batch: Batch) -> StepOutcome:
        """Sends the step of a batch, without its newest sequences where there is no room for them."""
        while True:
            start_ns = time.perf_counter_ns()
            try:
                outcome = await scheduler.step(**batch.step())
            except StatepoolError as error:
                self._admit_at = time.monotonic() + (error.retry_after or 0.0) * random.uniform(0.5, 1.5)  # noqa: S311
                if not isinstance(error, PoolExhaustedError) or not batch.preempt():
                    self._recorder.error("step", error)
                    raise
                self._recorder.latency("step_refused", time.perf_counter_ns() - start_ns)
            else:
                self._record(outcome, time.perf_counter_ns() - start_ns)
                return outcome

    def _may_admit(self, batch: Batch, scheduler: AsyncScheduler) -> bool:
        """Tells whether to begin sequences: not while the pool is short of blocks for those that run."""
        if time.monotonic() < self._admit_at:
            return False
        return not (batch.running and scheduler.is_under_pressure)

    def _record(self, outcome: StepOutcome, nanoseconds: int) -> None:
        copies = len(outcome.post_copies) + len(outcome.pre_copies)
        if len(outcome.admissions):
            kind = "step_admissions"
        else:
            kind = "step_copies" if copies or len(outcome.zeroed_block_ids) else "step_quiet"
        self._recorder.latency(kind, nanoseconds)
        self._recorder.count("copies", copies)
        for phase in (outcome.post_copies, outcome.pre_copies):
            nbytes = copied_bytes(phase.plan(), self._pool.layout.block)
            self._recorder.copied(nbytes * len(self._pool.tp_ranks))

    def _take_arrivals(self, batch: Batch) -> None:
        now_ns = time.perf_counter_ns()
        if self._arrivals is not None:
            arrived = [self._source.make(due_ns) for due_ns in self._arrivals.until(now_ns)]
            self._recorder.count("arrived", len(arrived))
            batch.waiting.extend(arrived)
        else:
            while len(batch) < self._workload.sequences:
                batch.waiting.append(self._source.make(now_ns))

    def _idle_seconds(self, batch: Batch, until_ns: int) -> float:
        """Tells how long to wait when nothing runs: for the next request, or for others to free blocks."""
        if batch.waiting or self._arrivals is None:
            return PAUSE_SECONDS
        return max(0.0, (min(self._arrivals.next_ns, until_ns) - time.perf_counter_ns()) / 1e9)
