"""A scheduler for asyncio; see `statepool.sync.scheduler`."""

# ruff: noqa: ASYNC109 — the deadline of a wait that leaves the step under way, not of a call

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

import grpc

from statepool.aio.transport import AsyncTransport
from statepool.channel import error_of_rpc
from statepool.errors import CancelledError, StatepoolError, UnavailableError
from statepool.handle import SchedulerHandle
from statepool.leases import Lease
from statepool.sequences import Admission, Commits, Execution, Notice, Schedules
from statepool.v1.sequence_pb2 import Notice as NoticeMessage
from statepool.v1.sequence_pb2 import ScheduleRequest, ScheduleResponse

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from statepool.outcomes import StepOutcome


class _Stream:
    """One Schedule stream: requests go into a queue, answers and the stream's end go into the scheduler's inbox.

    A task of its own reads, since a read of grpc.aio that is given up ends the whole stream.
    """

    def __init__(
        self,
        transport: AsyncTransport,
        requests: Iterable[ScheduleRequest],
        inbox: asyncio.Queue[_Event],
        noticed: Callable[[NoticeMessage], None],
    ) -> None:
        self._requests: asyncio.Queue[ScheduleRequest] = asyncio.Queue()
        for request in requests:
            self._requests.put_nowait(request)
        self._inbox = inbox
        self._noticed = noticed
        self._responses = transport.schedule(self._each_request())
        self._receiver = asyncio.create_task(self._receive(), name="statepool-schedule-responses")

    def send(self, request: ScheduleRequest) -> None:
        self._requests.put_nowait(request)

    async def close(self) -> None:
        self._responses.cancel()
        self._receiver.cancel()
        await asyncio.wait([self._receiver])

    async def _each_request(self) -> AsyncIterator[ScheduleRequest]:
        while True:
            yield await self._requests.get()

    async def _receive(self) -> None:
        try:
            async for response in self._responses:
                if response.HasField("notice"):
                    self._noticed(response.notice)
                else:
                    self._inbox.put_nowait((self, response))
            end: StatepoolError = UnavailableError("the server ended the stream")
        except grpc.RpcError as error:
            end = error_of_rpc(error)
        except asyncio.CancelledError:  # also what grpc.aio makes of a channel that is closed
            end = CancelledError("the client or the scheduler was closed")
        self._inbox.put_nowait((self, end))


_Event = tuple[_Stream, ScheduleResponse | StatepoolError]
"""An answer of a stream, or its end."""


class AsyncScheduler(SchedulerHandle):
    """Sends engine steps over one stream and receives their outcomes.

    Made by `AsyncSession.scheduler`; an async context manager that opens and closes the stream. The methods, their
    arguments and their errors are those of `statepool.sync.scheduler.Scheduler`. An ``on_notice`` callback runs on the
    event loop, so it must not block. A step whose caller was cancelled stays unreceived.
    """

    def __init__(
        self,
        transport: AsyncTransport,
        lease: Lease,
        execution: Execution,
        on_notice: Callable[[Notice], object] | None,
    ) -> None:
        super().__init__(transport.leases, lease, execution, on_notice)
        self._transport = transport
        self._inbox: asyncio.Queue[_Event] = asyncio.Queue()
        self._stream: _Stream | None = None
        self._is_closed = False

    async def open(self, *, timeout: float | None = None) -> None:
        """Opens the stream, from whose answer the steps are numbered; see `Scheduler.open`."""
        deadline = time.monotonic() + self._transport.seconds(timeout)
        while not self._pipeline.is_open:
            await self._advance(deadline)

    async def step(
        self,
        *,
        admit: Sequence[Admission] = (),
        schedule: Schedules | None = None,
        commit: Commits | None = None,
        finish: ArrayLike = (),
        settled_step: int | None = None,
        partial_admission: bool = False,
        timeout: float | None = None,
    ) -> StepOutcome:
        """Sends an engine step and receives its outcome; see `Scheduler.step`."""
        if self.unreceived_steps:
            raise RuntimeError(f"steps {self.unreceived_steps} were not received yet")
        await self.send(
            admit=admit,
            schedule=schedule,
            commit=commit,
            finish=finish,
            settled_step=settled_step,
            partial_admission=partial_admission,
        )
        return await self.receive(timeout=timeout)

    async def send(
        self,
        *,
        admit: Sequence[Admission] = (),
        schedule: Schedules | None = None,
        commit: Commits | None = None,
        finish: ArrayLike = (),
        settled_step: int | None = None,
        partial_admission: bool = False,
    ) -> int:
        """Sends an engine step without waiting for its outcome; see `Scheduler.send`."""
        self._check()
        number, request = self._pipeline.ask(
            {
                "admit": admit,
                "schedule": schedule,
                "commit": commit,
                "finish": finish,
                "settled_step": settled_step,
                "partial_admission": partial_admission,
            }
        )
        if self._stream is not None:  # else the next one is sent it when it is opened
            self._stream.send(request)
        return number

    async def receive(self, *, timeout: float | None = None) -> StepOutcome:
        """Receives the next outcome, in the order in which the steps were sent; see `Scheduler.receive`."""
        if not self.unreceived_steps:
            raise RuntimeError("every step was received")
        deadline = time.monotonic() + self._transport.seconds(timeout)
        while not self._pipeline.has_answer:
            await self._advance(deadline)
        return self._pipeline.take()

    async def close(self) -> None:
        """Ends the stream; see `Scheduler.close`."""
        self._is_closed = True
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.close()

    async def _advance(self, deadline: float) -> None:
        """Takes the next event of the stream; opens one if there is none."""
        self._check()
        if self._stream is None:
            self._stream = await self._reopen(deadline)
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                stream, event = await self._inbox.get()
        except TimeoutError:
            self._check()
            raise self._late() from None
        if stream is not self._stream:
            return
        if isinstance(event, StatepoolError):
            self._stream = None
            self._broke(event)
        else:
            self._took(event)

    async def _reopen(self, deadline: float) -> _Stream:
        await asyncio.sleep(max(0.0, min(self._retry_at, deadline) - time.monotonic()))
        if self._retry_at > deadline:
            raise self._late()
        return _Stream(self._transport, self._requests(), self._inbox, self._noticed)

    def _check(self) -> None:
        self._transport.check(self._lease)
        if self._is_closed:
            raise RuntimeError("the scheduler is closed")

    async def __aenter__(self) -> Self:
        try:
            await self.open()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
