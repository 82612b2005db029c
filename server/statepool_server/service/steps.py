"""Steps of each session: one after the other, each exactly once, and answered when its copies are done."""

import asyncio
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from statepool.errors import ChecksumMismatchError, StepOutOfOrderError
from statepool.v1 import sequence_pb2 as pb
from statepool_server.events import NO_IDS
from statepool_server.histogram import Histogram
from statepool_server.sequences.requests import ALL_ROOM
from statepool_server.service.core import Core
from statepool_server.service.draining import draining_error
from statepool_server.service.ledger import Kind
from statepool_server.service.verifying import Verifier
from statepool_server.step_convert import StepConvert, outcome_to_wire
from statepool_server.work import WorkEnd

REMEMBERED = 2
"""Steps of a session whose answers are kept; a client has at most as many unanswered."""


@dataclass(slots=True, eq=False)
class _Answer:
    """An answer that was given, or will be as soon as the memory work of its step has ended."""

    request: pb.EngineStep
    """What it answers."""
    outcome: pb.StepOutcome
    """The answer."""
    work: int = 0
    """Memory work that must have ended before the answer may go out; 0: none."""


@dataclass(slots=True, eq=False)
class _Line:
    """The latest steps of one session."""

    answers: dict[int, _Answer] = field(default_factory=dict)
    """Answers by step, oldest first."""

    busy: int = 0
    """Memory work of the latest step; 0: none."""

    def keep(self, answer: _Answer) -> None:
        """Remembers an answer, and forgets the one that nobody can ask for any more."""
        self.answers[answer.request.step] = answer
        self.busy = answer.work
        if len(self.answers) > REMEMBERED:
            del self.answers[next(iter(self.answers))]


@dataclass(frozen=True, slots=True)
class AnswerState:
    """A remembered answer as plain values."""

    session_id: int
    """The session."""
    request: bytes
    """The step."""
    outcome: bytes
    """Its answer."""
    work: int
    """Work before it."""


class StepCodec:
    """Writes steps down, each with its session, its epoch and how many more blocks the session might hold."""

    _head = struct.Struct("<QQq")

    def encode(self, request: tuple[int, int, int, pb.EngineStep]) -> bytes:
        """Writes a step."""
        return self._head.pack(*request[:3]) + request[3].SerializeToString()

    def decode(self, data: bytes) -> tuple[int, int, int, pb.EngineStep]:
        """Reads it back."""
        return (*self._head.unpack_from(data), pb.EngineStep.FromString(data[self._head.size :]))


class Steps:
    """Applies steps to the pool and has their memory work done.

    The queue of copies has always room for a step: a session has one at a time, and sessions are bounded.

    Attributes:
        seconds: What steps took that were answered, their copies included.
    """

    def __init__(self, core: Core, draining: asyncio.Event, verifier: Verifier) -> None:
        self.seconds = Histogram()
        self._core = core
        self._verifier = verifier
        self._draining = draining
        self._convert = StepConvert(core.convert, core.limits)
        self._lines: dict[int, _Line] = {}
        self._working: dict[int, _Answer] = {}
        core.ledger.register(Kind.STEP, StepCodec(), self._apply, proof=lambda answer: answer.outcome.digest)
        core.works.ended.append(self._work_ended)
        core.forgetters.append(self._forget)

    async def apply(self, session: tuple[int, int], step: pb.EngineStep) -> pb.StepOutcome:
        """Applies a step, or gives the answer that it got before.

        Args:
            session: Session id and epoch.
            step: The step.

        Raises:
            StepOutOfOrderError: The number was used for another step.
            ChecksumMismatchError: A state that an admission would begin with has changed; nothing was applied.
            StateLostError: The state of a sequence that is to go on is gone.
            DrainingError: It admits sequences, and the server is shutting down.
            CopiesStalledError: Memory work stands still. Where the step was applied already, its copies will be done.
            StatepoolError: Whatever else the pool has against it.
        """
        started, works, check_session = time.perf_counter(), self._core.works, self._core.pool.check_session
        check_session(*session)
        line = self._line(session[0])
        if self._verifier.vouches and step.admissions.prefix_hashes:
            await self._vouch_for_hits(line, step)
        while works.is_under_way(line.busy):
            await works.until_ended(line.busy)
            check_session(*session)
        answer = line.answers.get(step.step)
        if answer is None:
            if self._draining.is_set() and len(step.admissions.sequence_ids):
                raise draining_error()
            if step.execution != pb.EXECUTION_WORKER:
                self._core.copies.check_moving()
            room = self._core.quotas.room(session[0])
            answer = self._core.ledger.perform(Kind.STEP, (*session, ALL_ROOM if room is None else room, step))
        elif answer.request != step:
            raise StepOutOfOrderError(f"step {step.step} was applied with another content", field="step")
        if answer.work:
            await works.until_ended(answer.work)
        self.seconds.observe(time.perf_counter() - started)
        return answer.outcome

    def dump(self) -> list[AnswerState]:
        """Writes everything as plain values."""
        return [
            AnswerState(session_id, answer.request.SerializeToString(), answer.outcome.SerializeToString(), answer.work)
            for session_id, line in self._lines.items()
            for answer in line.answers.values()
        ]

    async def _vouch_for_hits(self, line: _Line, step: pb.EngineStep) -> None:
        """Refuses a step, before any of it is applied, that would begin a sequence with bytes that have changed."""
        pool, admissions = self._core.pool, self._convert.step(step).admissions
        try:
            await self._verifier.vouch_for(lambda: NO_IDS if step.step in line.answers else pool.hits(admissions))
        except ChecksumMismatchError:
            if step.step not in line.answers:
                raise

    def load(self, state: Sequence[AnswerState]) -> None:
        """Takes a state over; nothing may be remembered yet."""
        for row in state:
            outcome = pb.StepOutcome.FromString(row.outcome)
            self._keep(row.session_id, _Answer(pb.EngineStep.FromString(row.request), outcome, row.work))

    def _apply(self, request: tuple[int, int, int, pb.EngineStep], _now_ns: int) -> _Answer:
        session_id, epoch, block_room, step = request
        core = self._core
        outcome = core.pool.step(session_id, epoch, self._convert.step(step, block_room))
        answer = _Answer(step, outcome_to_wire(outcome))
        if outcome.work is None:
            answer.outcome.usage.CopyFrom(core.usage(outcome.usage))
        else:
            answer.work = core.works.begin(outcome.work)
        self._keep(session_id, answer)
        return answer

    def _line(self, session_id: int) -> _Line:
        line = self._lines.get(session_id)
        if line is None:
            line = self._lines[session_id] = _Line()
        return line

    def _keep(self, session_id: int, answer: _Answer) -> None:
        self._line(session_id).keep(answer)
        if answer.work:
            self._working[answer.work] = answer

    def _work_ended(self, number: int, end: WorkEnd) -> None:
        """Completes an answer."""
        answer = self._working.pop(number, None)
        if answer is not None:
            answer.outcome.published_blocks += end.published
            answer.outcome.lost_sequence_ids.extend(end.lost_sequence_ids)
            answer.outcome.usage.CopyFrom(self._core.usage())

    def _forget(self, session_id: int) -> None:
        self._lines.pop(session_id, None)
