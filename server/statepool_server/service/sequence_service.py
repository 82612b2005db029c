"""SequenceService: engine steps."""

from collections.abc import AsyncIterator

from statepool.errors import (
    BadFieldError,
    CopiesStalledError,
    SessionExpiredError,
    SessionFencedError,
    SessionNotFoundError,
    StatepoolError,
)
from statepool.status import error_to_wire
from statepool.v1 import sequence_pb2 as pb
from statepool.varints import varint
from statepool_server.logs import CALL
from statepool_server.service.calls import Context
from statepool_server.service.core import Core
from statepool_server.service.schedule_streams import ScheduleStreams
from statepool_server.service.stalls import Stalls
from statepool_server.service.steps import Steps
from statepool_server.step_convert import sequences_to_wire

LAST_ID = 2**63 - 1
"""Highest id that a sequence can have."""

_ENDS_THE_STREAM = (SessionExpiredError, SessionFencedError, SessionNotFoundError, CopiesStalledError)
"""What is no refusal of a step: the session is lost, or the step may take effect yet and is to be asked again."""
_OUTCOME_TAG = varint(pb.ScheduleResponse.OUTCOME_FIELD_NUMBER << 3 | 2)
"""What stands before the length of an outcome in a response: its field, and that it is a message."""


class SequenceService:
    """Handlers of ``statepool.v1.SequenceService``."""

    def __init__(self, core: Core, steps: Steps, streams: ScheduleStreams, stalls: Stalls) -> None:
        self._core = core
        self._stalls = stalls
        self._steps = steps
        self._streams = streams
        self._head = pb.ScheduleResponse(incarnation=core.incarnation).SerializeToString() + _OUTCOME_TAG

    async def Step(self, request: pb.StepRequest, _context: Context) -> pb.StepResponse:
        """Applies one step."""
        session = self._core.convert.session(request.session)
        outcome = await self._steps.apply(session, request.step)
        return pb.StepResponse(incarnation=self._core.incarnation, outcome=outcome)

    async def Schedule(self, requests: AsyncIterator[pb.ScheduleRequest], context: Context) -> None:
        """Applies steps for as long as the client likes."""
        first = await self._stalls.moving(anext(requests, None), "the writer")
        if first is None or first.WhichOneof("message") != "open":
            raise BadFieldError("the first message of the stream must open it", field="open")
        session = self._core.convert.session(first.open)
        self._core.pool.check_session(*session)
        CALL.set((session[0], ""))
        async with self._streams.opened(session, context) as stream:
            await stream.send(self._opened(session[0]))
            async for request in requests:
                if request.WhichOneof("message") != "step":
                    raise BadFieldError("every message after the first must be a step", field="step")
                with self._core.tracing.step(request.traceparent):
                    await stream.send(await self._answer(session, request.step))

    async def ListSequences(self, request: pb.ListSequencesRequest, _context: Context) -> pb.ListSequencesResponse:
        """Lists a page of sequences."""
        core = self._core
        first_id, size = core.convert.page(request.page_size, request.page_token)
        rows = core.pool.list_sequences(request.session_id, first_id, size)
        response = sequences_to_wire(rows)
        response.incarnation = core.incarnation
        if len(rows.sequence_ids) == size and (last_id := int(rows.sequence_ids[-1])) < LAST_ID:
            response.next_page_token = core.convert.page_token(last_id + 1)
        return response

    async def _answer(self, session: tuple[int, int], step: pb.EngineStep) -> pb.ScheduleResponse | bytes:
        try:
            outcome = (await self._steps.apply(session, step)).SerializeToString()
            return self._head + varint(len(outcome)) + outcome  # which another message would only copy
        except _ENDS_THE_STREAM:
            raise
        except StatepoolError as error:
            refusal = pb.StepRefusal(step=step.step, error=error_to_wire(self._core.refusal(error)))
            return pb.ScheduleResponse(incarnation=self._core.incarnation, refusal=refusal)

    def _opened(self, session_id: int) -> pb.ScheduleResponse:
        last_step, settled_step = self._core.pool.last_steps(session_id)
        opened = pb.ScheduleOpened(last_step=last_step, settled_step=settled_step)
        return pb.ScheduleResponse(incarnation=self._core.incarnation, opened=opened)
