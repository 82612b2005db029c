"""A scheduler process: drives the align workload over the client library, and notes every step and its answer."""

import base64
import contextlib
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from robustness.history import OTHERWISE, SAME, History
from robustness.passes import Order, PassFailedError, WorkerLink, copies_of, run_of
from robustness.scenario import NAMESPACE, RANKS, Scenario
from statepool import Client, Execution, Pool, Session, StatepoolError
from statepool.calls.sequences import schedule_step
from statepool.errors import (
    BlockBusyError,
    DeadlineExceededError,
    PoolExhaustedError,
    SessionFencedError,
    UnavailableError,
)
from statepool.loadtest.batch import Batch
from statepool.loadtest.options import AlignWorkload, LoadOptions
from statepool.loadtest.record import Recorder
from statepool.loadtest.requests import RequestSource
from statepool.outcomes import StepOutcome
from statepool.steps import StepColumns
from statepool.sync.scheduler import Scheduler

if TYPE_CHECKING:
    from statepool.calls.sequences import StepArguments

CALL_SECONDS = 3.0
"""Deadline of a call: short, so that many a call outlives it when a connection stalls."""
PAUSE_SECONDS = 0.02
PAUSE_AFTER_LOSS_SECONDS = 0.1
RESUME_SECONDS = 30.0
REPEATED_SHARE = 0.05
"""Share of the steps that are asked for once more when they are answered."""
MOST_PASSES = 120
"""Steps after which a session is ended and another opened, so that there are many."""


class Ending:
    """Whether the process was told to end."""

    def __init__(self) -> None:
        self._told = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: self._told.set())

    def __bool__(self) -> bool:
        return self._told.is_set()


class NotedScheduler:
    """A scheduler whose steps and answers are in the history."""

    def __init__(
        self,
        session: Session,
        scheduler: Scheduler,
        about: dict[str, int],
        last_step: int,
        execution: Execution,
        history: History,
    ):
        """Wraps an open scheduler.

        Args:
            session: The session.
            scheduler: Its scheduler.
            about: Names the session in the history, by the server that opened it.
            last_step: The session's last step.
            execution: Who runs the copies.
            history: Where to note.
        """
        self._session = session
        self._scheduler = scheduler
        self._about = about
        self._next_step = last_step + 1
        self._dice = random.Random(session.session_id)
        self._execution = execution
        self._history = history

    def step(self, columns: StepColumns) -> StepOutcome:
        """Sends a step, and waits for its answer for as long as the session lives."""
        arguments: StepArguments = {**columns, "settled_step": None, "partial_admission": False}
        request = schedule_step(self._next_step, self._execution, arguments).step
        about = {**self._about, "step": self._next_step}
        self._history.note("asked", **about, request=_text(request.SerializeToString(deterministic=True)))
        try:
            number = self._scheduler.send(**columns)
            assert number == self._next_step
            outcome = self._received()
        except StatepoolError as error:
            self._history.note("refused", **about, error=type(error).__name__, message=error.message[:300])
            raise
        self._history.note("answered", **about, outcome=_text(outcome.to_bytes()))
        self._next_step += 1
        if self._dice.random() < REPEATED_SHARE:
            self._history.note("repeated", **about, answer=self._repeat(arguments, outcome))
        return outcome

    def _repeat(self, arguments: "StepArguments", outcome: StepOutcome) -> str:
        """Asks for a step again, beside the stream, as one does whose answer was lost."""
        try:
            again = self._session.step(outcome.step, execution=self._execution, **arguments)
        except StatepoolError as error:
            return type(error).__name__
        return SAME if again.to_bytes() == outcome.to_bytes() else OTHERWISE

    def _received(self) -> StepOutcome:
        while True:
            try:
                return self._scheduler.receive()
            except (UnavailableError, DeadlineExceededError):
                if self._session.error is not None or not self._scheduler.unreceived_steps:
                    raise


class Engine:
    """Opens sessions and serves requests in them, until it is told to end or another process has taken its place."""

    def __init__(self, name: str, scenario: Scenario, client: Client, links: list[WorkerLink], history: History):
        self._name = name
        self._scenario = scenario
        self._client = client
        self._links = links
        self._history = history
        self._dice = random.Random(f"{scenario.seed}.{name}.{time.monotonic_ns()}")

    def run(self, ending: Ending) -> None:
        """Serves in session after session."""
        while not ending:
            try:
                self._serve_session(ending)
            except SessionFencedError as error:
                self._history.note("lost", error=type(error).__name__, message=error.message)
                if self._scenario.take_over:
                    return  # by a process that was started in this one's place
            except (StatepoolError, PassFailedError, TimeoutError) as error:
                self._history.note("lost", error=type(error).__name__, message=str(error)[:200])
                time.sleep(PAUSE_AFTER_LOSS_SECONDS)

    def _serve_session(self, ending: Ending) -> None:
        scenario = self._scenario
        session = self._client.create_session(
            scenario.ttl,
            owner_key=self._name if scenario.take_over else "",
            take_over=scenario.take_over,
            resume_within=RESUME_SECONDS if scenario.resumes else 0.0,
        )
        about = {"incarnation": session.incarnation, "session": session.session_id, "epoch": session.epoch}
        self._history.note("opened", **about, taken_over=session.taken_over)
        try:
            last_step, inherited = self._inherited(session, about)
            with session.scheduler(execution=scenario.execution) as stream:
                scheduler = NotedScheduler(session, stream, about, last_step, scenario.execution, self._history)
                if inherited:
                    self._finish(scheduler, inherited)
                self._serve(session, scheduler, ending)
        finally:
            self._history.note("leaving", **about)
            for link in self._links:
                link.close()
            session.close()

    def _inherited(self, session: Session, about: dict[str, int]) -> tuple[int, list[int]]:
        """Lists what a former owner has left in the session: its last step and its sequences."""
        if not session.taken_over:
            return 0, []
        pages = list(self._client.list_sequences(session.session_id))
        last_step = pages[-1].last_step
        sequences = [number for page in pages for number in page.sequence_ids.tolist()]
        self._history.note("inherited", **about, last_step=last_step, sequences=sequences)
        return last_step, sequences

    def _finish(self, scheduler: NotedScheduler, sequences: list[int]) -> None:
        """Ends what a former owner has left, as soon as workers have ended its passes."""
        while True:
            try:
                scheduler.step({"admit": [], "schedule": None, "commit": None, "finish": sequences})
            except BlockBusyError:
                time.sleep(PAUSE_SECONDS)
            else:
                return

    def _serve(self, session: Session, scheduler: NotedScheduler, ending: Ending) -> None:
        pool = self._client.get_pool()
        batch, source = self._batch(pool)
        for _ in range(self._dice.randint(MOST_PASSES // 4, MOST_PASSES)):
            if ending:
                break
            while len(batch) < self._scenario.sequences:
                batch.waiting.append(source.make(0))
            batch.plan()
            number, outcome = self._step(scheduler, batch)
            self._forward(session, number, outcome, batch)
            batch.sample()
            if not batch.running:
                time.sleep(PAUSE_SECONDS)

    def _batch(self, pool: Pool) -> tuple[Batch, RequestSource]:
        workload = AlignWorkload(
            engines=1, sequences=self._scenario.sequences, shared_blocks=2, prompt_tokens=24, output_tokens=20
        )
        seed = self._dice.randrange(2**32)
        # Prompts are drawn by the run's seed, so that schedulers and their successors share their beginnings.
        options = LoadOptions(
            target="",
            duration=0,
            warmup=0,
            workload=workload,
            rate=0,
            processes=1,
            verify=1.0,
            seed=self._scenario.seed,
        )
        source = RequestSource(seed, workload, options, pool.block_tokens, 1)
        return Batch(pool, self._scenario.sequences, NAMESPACE, str(seed), Recorder()), source

    def _step(self, scheduler: NotedScheduler, batch: Batch) -> tuple[int, StepOutcome]:
        while True:
            try:
                outcome = scheduler.step(batch.step())
            except PoolExhaustedError:
                if not batch.preempt():
                    raise
            else:
                return outcome.step, outcome

    def _forward(self, session: Session, number: int, outcome: StepOutcome, batch: Batch) -> None:
        runs = [run_of(run) for run in batch.applied(outcome)]
        by_worker = self._scenario.execution is Execution.WORKER
        order = Order(
            session_id=session.session_id,
            epoch=session.epoch,
            step=number,
            outcome=copies_of(outcome) if by_worker else "",
            runs=runs,
        )
        line = order.to_line()
        for link in self._links:
            link.send(line)
        for link in self._links:
            link.receive()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def main(target: str, name: str, number: str, scenario_json: str, folder: str) -> None:
    """Serves until SIGTERM."""
    ending, scenario, history = Ending(), Scenario.from_json(scenario_json), History(Path(folder), name)
    sockets = [
        [Path(folder) / f"worker{rank}.{n}.sock" for n in range(scenario.workers_per_rank)] for rank in range(RANKS)
    ]
    with Client(target, timeout=CALL_SECONDS) as client:
        links = [WorkerLink(paths, int(number)) for paths in sockets if paths]
        engine = Engine(name, scenario, client, links, history)
        with contextlib.suppress(KeyboardInterrupt):
            engine.run(ending)
    history.note("ended")


if __name__ == "__main__":
    main(*sys.argv[1:])
