"""Steps of each session: one after the other, each exactly once, and answered when its copies are done."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from statepool.errors import StateLostError, StatepoolError, StepOutOfOrderError
from statepool.v1 import sequence_pb2 as pb
from statepool_server.memory import Memory
from statepool_server.sequences.outcomes import StepWork
from statepool_server.service.core import Core
from statepool_server.service.draining import draining_error
from statepool_server.step_convert import StepConvert, outcome_to_wire

REMEMBERED = 2
"""Steps of a session whose answers are kept; a client has at most as many unanswered."""


@dataclass(slots=True, eq=False)
class _Answer:
    """An answer that was given, or will be as soon as the memory work of its step has ended."""

    request: pb.EngineStep
    """What it answers."""
    outcome: pb.StepOutcome
    """The answer."""
    done: "asyncio.Future[None] | None" = None
    """Done when the answer may go out; None: at once."""
    error: StatepoolError | None = None
    """What to answer instead, since the memory work failed."""


@dataclass(slots=True, eq=False)
class _Line:
    """The latest steps of one session."""

    answers: dict[int, _Answer] = field(default_factory=dict)
    """Answers by step, oldest first."""

    busy: "asyncio.Future[None] | None" = None
    """Done when the memory work of the latest step has ended."""

    def keep(self, answer: _Answer) -> None:
        """Remembers an answer, and forgets the one that nobody can ask for any more."""
        self.answers[answer.request.step] = answer
        self.busy = answer.done
        if len(self.answers) > REMEMBERED:
            del self.answers[next(iter(self.answers))]


class Steps:
    """Applies steps to the pool and runs their memory work.

    The queue of copies has always room for a step: a session has one at a time, and sessions are bounded.
    """

    def __init__(self, core: Core, draining: asyncio.Event) -> None:
        self._core = core
        self._draining = draining
        self._convert = StepConvert(core.convert, core.limits)
        self._lines: dict[int, _Line] = {}

    async def apply(self, session: tuple[int, int], step: pb.EngineStep) -> pb.StepOutcome:
        """Applies a step, or gives the answer that it got before.

        Args:
            session: Session id and epoch.
            step: The step.

        Raises:
            StepOutOfOrderError: The number was used for another step.
            StateLostError: Its copies failed.
            DrainingError: It admits sequences, and the server is shutting down.
            StatepoolError: Whatever else the pool has against it.
        """
        self._core.pool.check_session(*session)
        line = self._lines.setdefault(session[0], _Line())
        while line.busy is not None and not line.busy.done():
            await asyncio.shield(line.busy)
            self._core.pool.check_session(*session)
        answer = line.answers.get(step.step)
        if answer is None:
            answer = self._apply(session, step)
            line.keep(answer)
        elif answer.request != step:
            raise StepOutOfOrderError(f"step {step.step} was applied with another content", field="step")
        if answer.done is not None:
            await asyncio.shield(answer.done)
        if answer.error is not None:
            raise answer.error
        return answer.outcome

    def sessions_ended(self, session_ids: Sequence[int]) -> None:
        """Forgets sessions."""
        for session_id in session_ids:
            self._lines.pop(session_id, None)

    def _apply(self, session: tuple[int, int], step: pb.EngineStep) -> _Answer:
        core = self._core
        if self._draining.is_set() and len(step.admissions.sequence_ids):
            raise draining_error()
        outcome = core.pool.step(*session, self._convert.step(step))
        answer = _Answer(step, outcome_to_wire(outcome))
        if outcome.work is None:
            answer.outcome.usage.CopyFrom(core.usage(outcome.usage))
        else:
            self._start(outcome.work, answer)
        core.blocks_changed()
        return answer

    def _start(self, work: StepWork, answer: _Answer) -> None:
        """Starts memory work whose end completes the answer."""
        core, done = self._core, asyncio.get_running_loop().create_future()

        def ended(copying: "asyncio.Future[Any]") -> None:
            failed = copying.cancelled() or copying.exception() is not None
            answer.outcome.published_blocks += core.pool.finish_step_work(work, succeeded=not failed)
            answer.outcome.usage.CopyFrom(core.usage())
            if failed:
                answer.error = StateLostError(f"the copies of step {answer.request.step} failed", field="step")
            core.blocks_changed()
            done.set_result(None)

        answer.done = done
        core.copies.submit(lambda: _run(work, core.memory)).add_done_callback(ended)


def _run(work: StepWork, memory: Memory) -> None:
    """Does the memory work of a step; on a copy thread."""
    if len(work.post_copies):
        memory.copy(work.post_copies)
    if len(work.zeroed_blocks):
        memory.zero(work.zeroed_blocks)
    if len(work.pre_copies):
        memory.copy(work.pre_copies)
