"""What a Schedule stream was asked and what it answered: the bookkeeping of both schedulers, without their I/O."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from statepool import calls, rpc, tracing
from statepool.errors import StatepoolError, StepOutOfOrderError
from statepool.lease import log
from statepool.sequences import Execution
from statepool.v1.sequence_pb2 import ScheduleRequest, ScheduleResponse
from statepool.v1.types_pb2 import SessionRef

if TYPE_CHECKING:
    from statepool.calls.sequences import StepArguments
    from statepool.outcomes import StepOutcome

MAX_UNRECEIVED = 2
"""Steps that may be sent before the outcome of the first is received; the server allows no more."""


@dataclass(slots=True)
class _Asked:
    """A step that was sent and is not answered."""

    number: int
    request: ScheduleRequest
    span: tracing.CallSpan | None = None
    """Its span, in a program that traces; one that is never answered is never told."""
    is_common: bool = False
    """Whether its message can be used again for the next one like it."""
    is_doomed: bool = False
    """Whether the step before it was refused, so that this one is refused too."""


class Pipeline:
    """Numbers steps, keeps those that are not answered, and puts the answers in order. Used by one thread or task only.

    A refused step gives its number back. The step that was sent after it is *doomed*: the server, which waits for the
    number that was refused, refuses it as out of order. A new stream is sent what is not answered, under the same
    numbers, but never a doomed step: it would be taken for the next one if the refused number has been used since.
    """

    def __init__(self, session: SessionRef, execution: Execution) -> None:
        self._session = session
        self._execution = execution
        self._next_step = 0
        self._asked: deque[_Asked] = deque()
        self._answers: deque[tuple[int, StepOutcome | StatepoolError]] = deque()
        self._used: list[ScheduleRequest] = []  # messages of the commonest step that were answered

    @property
    def next_step(self) -> int:
        """Number of the step that is asked next; 0: it is not known yet."""
        return self._next_step

    @property
    def is_open(self) -> bool:
        """Whether the server has told where the session's steps stand."""
        return self._next_step > 0

    @property
    def has_answer(self) -> bool:
        """Whether `take` has something to give."""
        return bool(self._answers)

    @property
    def is_idle(self) -> bool:
        """Whether every answer was taken."""
        return not self._asked and not self._answers

    @property
    def unreceived(self) -> tuple[int, ...]:
        """Numbers of the steps that were sent and whose answers were not taken, in the order of sending."""
        return (*(number for number, _ in self._answers), *(asked.number for asked in self._asked))

    def ask(self, arguments: StepArguments) -> tuple[int, ScheduleRequest]:
        """Builds the next step.

        Returns:
            Its number, and what is to be sent.

        Raises:
            RuntimeError: The stream was never opened, or two steps were not received yet.
            ValueError: A column is not integers, or would be wrapped around by the wire.
        """
        number = self._next_step
        if not self.is_open:
            raise RuntimeError("the scheduler is not open")
        if len(self._answers) + len(self._asked) >= MAX_UNRECEIVED:
            raise RuntimeError(f"steps {self.unreceived} were not received yet")
        is_common = calls.sequences.is_one_each(arguments)
        if is_common:  # written over the message of one before, which is quicker than a new one
            request = self._used.pop() if self._used else calls.sequences.one_each(self._execution)
            calls.sequences.renumber(request, number)
        else:
            request = calls.sequences.schedule_step(number, self._execution, arguments)
        span = tracing.begin(rpc.SCHEDULE)
        if span is not None:
            request.traceparent = span.traceparent
        self._asked.append(_Asked(number, request, span, is_common))
        self._next_step = number + 1
        return number, request

    def requests(self) -> list[ScheduleRequest]:
        """Lists what is to be sent on a new stream; doomed steps are answered here."""
        while self._asked and self._asked[0].is_doomed:
            number = self._asked[0].number
            self._refused(number, StepOutOfOrderError(f"step {number}: the step before it was refused"))
        return [calls.sequences.schedule_open(self._session), *(asked.request for asked in self._asked)]

    def answered(self, response: ScheduleResponse) -> None:
        """Takes a message of the stream in; answers that nobody waits for are passed over."""
        kind = response.WhichOneof("message")
        if kind == "outcome":
            self._applied(response)
        elif kind == "refusal":
            from statepool.status import error_from_wire

            self._refused(response.refusal.step, error_from_wire(response.refusal.error))
        elif kind == "opened" and not self.is_open:
            self._next_step = response.opened.last_step + 1

    def take(self) -> StepOutcome:
        """Gives the next answer; `has_answer` must be true.

        Raises:
            StatepoolError: The step was refused.
        """
        _, answer = self._answers.popleft()
        if isinstance(answer, StatepoolError):
            raise answer
        return answer

    def _applied(self, response: ScheduleResponse) -> None:
        number = response.outcome.step
        asked = self._due(number)
        if asked is not None:
            self._answers.append((number, calls.sequences.answer(response.outcome)))
            if asked.span is not None:
                asked.span.end()
            elif asked.is_common:
                self._used.append(asked.request)

    def _refused(self, number: int, error: StatepoolError) -> None:
        due = self._due(number)
        if due is None:
            return
        if due.span is not None:
            due.span.end(error)
        self._answers.append((number, error))
        self._next_step = min(self._next_step, number)
        for asked in self._asked:
            asked.is_doomed |= asked.number > number

    def _due(self, number: int) -> _Asked | None:
        """Takes the step off the list whose answer is the next to come, if it is this one."""
        if not self._asked or self._asked[0].number != number:
            log.debug("an answer to step %d, which nobody waits for", number)
            return None
        return self._asked.popleft()
