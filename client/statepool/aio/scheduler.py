"""A scheduler for asyncio; see `statepool.sync.scheduler`."""

# ruff: noqa: ASYNC109 — the deadline of a wait that leaves the step under way, not of a call

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

import grpc

from statepool.aio.transport import AsyncTransport, ScheduleStream
from statepool.channel import error_of_rpc
from statepool.errors import CancelledError, UnavailableError
from statepool.handle import SchedulerHandle
from statepool.lease import Lease
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
        super().__init__(transport.leases, lease, execution, on_notice)
        self._transport = transport
        self._stream: ScheduleStream | None = None
        lease.listen(self._lease_changed)

    async def open(self, *, timeout: float | None = None) -> None:
        """Opens the stream, from whose answer the steps are numbered; see `Scheduler.open`."""
        deadline = self._deadline(timeout)
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
        if not self._pipeline.is_idle:
            raise RuntimeError(f"steps {self.unreceived_steps} were not received yet")
        deadline = self._deadline(timeout)
        arguments: StepArguments = {
            "admit": admit,
            "schedule": schedule,
            "commit": commit,
            "finish": finish,
            "settled_step": settled_step,
            "partial_admission": partial_admission,
        }
        await self._send(arguments, deadline)
        return await self._receive(deadline)

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
        return await self._send(arguments, self._deadline(None))

    async def receive(self, *, timeout: float | None = None) -> StepOutcome:
        """Receives the next outcome, in the order in which the steps were sent; see `Scheduler.receive`."""
        if self._pipeline.is_idle:
            raise RuntimeError("every step was received")
        return await self._receive(self._deadline(timeout))

    async def close(self) -> None:
        """Ends the stream; see `Scheduler.close`."""
        self._is_closed = True
        self._lease.forget(self._lease_changed)
        self._abandon()

    async def _send(self, arguments: StepArguments, deadline: float) -> int:
        self._check()
        number, request = self._pipeline.ask(arguments)
        if self._stream is not None:  # else the next one is sent it when it is opened
            await self._write(self._stream, request, deadline)
        return number

    async def _receive(self, deadline: float) -> StepOutcome:
        while not self._pipeline.has_answer:
            await self._advance(deadline)
        return self._pipeline.take()

    async def _advance(self, deadline: float) -> None:
        """Takes the next message of the stream; opens one if there is none."""
        self._check()
        if self._stream is None:
            await self._reopen(deadline)
        response = await self._read(deadline)
        if response is None:
            return
        if response.HasField("notice"):
            self._noticed(response.notice)
        else:
            self._took(response)

    async def _read(self, deadline: float) -> ScheduleResponse | None:
        """Reads a message; None: the stream broke and is to be opened again."""
        stream = self._stream
        assert stream is not None  # noqa: S101 - opened by the caller
        try:
            response = await self._within(deadline, stream.read())
        except grpc.RpcError as error:
            self._stream = None
            self._broke(error_of_rpc(error))
            return None
        if isinstance(response, ScheduleResponse):
            return response
        self._stream = None
        self._broke(UnavailableError("the server ended the stream"))
        return None

    def _lease_changed(self) -> None:
        """Ends the stream of a lost session, whose answers nobody may wait for."""
        if self._lease.error is not None:
            self._abandon()

    async def _reopen(self, deadline: float) -> None:
        await self._transport.hold(self._lease, deadline)
        await asyncio.sleep(max(0.0, min(self._retry_at, deadline) - time.monotonic()))
        if self._retry_at > deadline:
            raise self._late()
        self._stream = self._transport.schedule()
        for request in self._requests():
            await self._write(self._stream, request, deadline)

    async def _write(self, stream: ScheduleStream, request: ScheduleRequest, deadline: float) -> None:
        """Writes a message; when the stream is broken, the next read says why, and another stream is sent it."""
        with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):
            await self._within(deadline, stream.write(request))

    async def _within(self, deadline: float, operation: Awaitable[T]) -> T:
        """Awaits a read or a write; to give one up ends a stream of grpc.aio, so that another is to be opened."""
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await operation
        except TimeoutError:
            self._abandon()
            self._check()
            raise self._late() from None
        except asyncio.CancelledError:
            self._abandon()
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            self._check()
            raise CancelledError("the client was closed") from None  # what grpc.aio makes of it

    def _abandon(self) -> None:
        if self._stream is not None:
            self._stream.cancel()
        self._stream = None

    def _deadline(self, timeout: float | None) -> float:
        return time.monotonic() + self._transport.seconds(timeout)

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
