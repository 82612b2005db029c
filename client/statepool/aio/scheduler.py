"""A scheduler for asyncio; see `statepool.sync.scheduler`."""

# ruff: noqa: ASYNC109 — the deadline of a wait that leaves the step under way, not of a call

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

import grpc

from statepool.aio.alarm import Alarm
from statepool.aio.ending import Ending
from statepool.aio.transport import AsyncTransport, ScheduleStream
from statepool.channel import error_of_cut_rpc
from statepool.errors import UnavailableError
from statepool.handle import SchedulerHandle
from statepool.lease import Lease, suspended_error
from statepool.sequences import Admission, Commits, Execution, Notice, Schedules
from statepool.v1.sequence_pb2 import ScheduleRequest, ScheduleResponse

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from statepool.calls.sequences import StepArguments
    from statepool.outcomes import StepOutcome

T = TypeVar("T")


class AsyncScheduler(SchedulerHandle):
    """Sends engine steps over one stream and receives their outcomes.

    Made by `AsyncSession.scheduler`; an async context manager that opens and closes the stream. The methods, their
    arguments and their errors are those of `statepool.sync.scheduler.Scheduler`. Notices are taken in while an answer
    is waited for; an ``on_notice`` callback runs on the event loop, so it must not block. A step whose caller was
    cancelled, or whose deadline passed, stays unreceived: `receive` asks for its outcome again, on another stream.
    """

    def __init__(
        self,
        transport: AsyncTransport,
        lease: Lease,
        execution: Execution,
        on_notice: Callable[[Notice], object] | None,
    ) -> None:
        super().__init__(transport.target, transport.leases, lease, execution, on_notice)
        self._transport = transport
        self._stream: ScheduleStream | None = None
        self._ending: Ending | None = None
        self._sending, self._receiving = Alarm(), Alarm()
        lease.listen(self._lease_changed)

    async def open(self, *, timeout: float | None = None) -> None:
        """Opens the stream, from whose answer the steps are numbered; see `Scheduler.open`."""
        await self._within(self._receiving, self._transport.seconds(timeout), self._open())

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
        if not self._pipeline.is_idle:
            raise RuntimeError(f"steps {self.unreceived_steps} were not received yet")
        arguments: StepArguments = {
            "admit": admit,
            "schedule": schedule,
            "commit": commit,
            "finish": finish,
            "settled_step": settled_step,
            "partial_admission": partial_admission,
        }
        return await self._within(self._receiving, self._transport.seconds(timeout), self._step(arguments))

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
        """Sends an engine step without waiting for its outcome; see `Scheduler.send`.

        Where the connection takes nothing, it waits at most as long as the client's timeout.
        """
        arguments: StepArguments = {
            "admit": admit,
            "schedule": schedule,
            "commit": commit,
            "finish": finish,
            "settled_step": settled_step,
            "partial_admission": partial_admission,
        }
        return await self._within(self._sending, self._transport.timeout, self._send(arguments))

    async def receive(self, *, timeout: float | None = None) -> StepOutcome:
        """Receives the next outcome, in the order in which the steps were sent; see `Scheduler.receive`."""
        if self._pipeline.is_idle:
            raise RuntimeError("every step was received")
        return await self._within(self._receiving, self._transport.seconds(timeout), self._receive())

    async def close(self) -> None:
        """Ends the stream; see `Scheduler.close`."""
        self._is_closed = True
        self._lease.forget(self._lease_changed)
        self._sending.stop()
        self._receiving.stop()
        self._abandon()

    async def _open(self) -> None:
        while not self._pipeline.is_open:
            self._check()
            await self._advance()

    async def _step(self, arguments: StepArguments) -> StepOutcome:
        await self._send(arguments)
        await self._advance()  # what `_receive` checks first has just been checked
        return await self._receive()

    async def _send(self, arguments: StepArguments) -> int:
        self._check()
        number, request = self._pipeline.ask(arguments)
        if self._stream is not None:  # else the next one is sent it when it is opened
            await self._write(self._stream, request)
        return number

    async def _receive(self) -> StepOutcome:
        while not self._pipeline.has_answer:
            self._check()
            await self._advance()
        return self._pipeline.take()

    async def _advance(self) -> None:
        """Takes the next message of the stream; opens one if there is none."""
        stream, ending = self._stream, self._ending
        if stream is None or ending is None:
            stream, ending = await self._reopen()
        try:
            response = await stream.read()
        except asyncio.CancelledError:
            if not self._is_given_up(stream):
                raise
            return
        except grpc.RpcError as error:
            self._stream = None
            self._broke(error_of_cut_rpc(ending.error(error)))
            return
        if not isinstance(response, ScheduleResponse):
            self._stream = None
            self._broke(UnavailableError("the server ended the stream"))
        elif response.HasField("notice"):
            self._noticed(response.notice)
        else:
            self._took(response)

    def _lease_changed(self) -> None:
        """Ends the stream of a lost session, whose answers nobody may wait for."""
        if self._lease.error is not None:
            self._abandon()

    async def _reopen(self) -> tuple[ScheduleStream, Ending]:
        await self._transport.hold(self._lease, math.inf)  # as long as the alarm lets it
        await asyncio.sleep(max(0.0, self._retry_at - time.monotonic()))
        self._stream = stream = self._transport.schedule()
        self._ending = ending = Ending(stream)
        for request in self._requests():
            await self._write(stream, request)
        return stream, ending

    async def _write(self, stream: ScheduleStream, request: ScheduleRequest) -> None:
        """Writes a message; when the stream is broken, the next read says why, and another stream is sent it."""
        try:
            await stream.write(request)
        except (grpc.RpcError, asyncio.InvalidStateError):
            return
        except asyncio.CancelledError:
            if not self._is_given_up(stream):
                raise

    def _is_given_up(self, stream: ScheduleStream) -> bool:
        """Tells whether what was cancelled is a stream, by another task that has given it up, and not this task."""
        return self._stream is not stream and not _is_cancelled()

    async def _within(self, alarm: Alarm, seconds: float, operation: Coroutine[None, None, T]) -> T:
        """Awaits what reads or writes; to give that up ends a stream of grpc.aio, so that another is to be opened."""
        try:
            return await alarm.within(time.monotonic() + seconds, operation)
        except TimeoutError:
            self._abandon()
            self._check()
            raise (suspended_error(self._lease) if self._lease.is_suspended else self._late()) from None
        except asyncio.CancelledError:
            self._abandon()
            if not _is_cancelled():
                self._check()  # grpc.aio makes it of a client that was closed
            raise

    def _abandon(self) -> None:
        if self._stream is not None:
            self._stream.cancel()
        self._stream = None

    def _check(self) -> None:
        self._transport.check(self._lease)
        self._check_stream()
        if self._lease.is_suspended:
            self._abandon()

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


def _is_cancelled() -> bool:
    """Tells whether somebody has cancelled the running task."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
