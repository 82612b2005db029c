"""Executes calls on a grpc.aio channel and turns its failures into statepool's errors."""

# ruff: noqa: ASYNC109 — a deadline is sent to the server with each call, which asyncio.timeout cannot do

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import grpc

from statepool import calls, rpc, tracing
from statepool.aio.alarm import Alarm
from statepool.aio.ending import Ending
from statepool.byte_chunks import decode_chunk
from statepool.channel import (
    RELEASE_SECONDS,
    ChannelOptions,
    call_seconds,
    channel_options,
    error_of_cut_rpc,
    error_of_rpc,
    seconds_left,
)
from statepool.errors import CancelledError, StatepoolError, UnavailableError
from statepool.lease import LOSING_ERRORS, Lease, log, suspended_error
from statepool.leases import Leases
from statepool.retries import Attempts, ClientStats, RetryBudget
from statepool.rpc import Call, Metadata, Rpc
from statepool.security import Security
from statepool.v1 import block_pb2, pool_pb2, sequence_pb2, session_pb2

if TYPE_CHECKING:
    from statepool.byte_chunks import UncheckedChunk
    from statepool.calls.images import ImageReader
    from statepool.calls.transfers import TransferReader
    from statepool.descriptions import Pool
    from statepool.results import Chunk

C = TypeVar("C")
T = TypeVar("T")

KeepAliveStream: TypeAlias = "grpc.aio.StreamStreamCall[session_pb2.KeepAliveRequest, session_pb2.KeepAliveResponse]"
"""A KeepAlive stream that is under way."""

if TYPE_CHECKING:
    ScheduleStream: TypeAlias = grpc.aio.StreamStreamCall[sequence_pb2.ScheduleRequest, sequence_pb2.ScheduleResponse]
else:
    ScheduleStream = grpc.aio.StreamStreamCall  # is generic for type checkers only
"""A Schedule stream that is under way."""


class AsyncTransport:
    """A channel to one server, and what its answers say about the leases.

    Attributes:
        target: Where it connects.
        timeout: Deadline in seconds of a call that names none.
        leases: The leases of every session over this channel.
    """

    def __init__(
        self,
        target: str,
        timeout: float,
        security: Security,
        options: ChannelOptions,
    ) -> None:
        security.check(target)
        self.target = target
        self.timeout = call_seconds(timeout)
        self.leases = Leases()
        self._budget = RetryBudget(time.monotonic())
        self._credentials = security.credentials
        self._metadata = security.metadata
        self._options = channel_options([*security.options, *options])
        self._channel: grpc.aio.Channel | None = None
        self._unary: dict[str, grpc.aio.UnaryUnaryMultiCallable[Any, Any]] = {}
        self._pool: Pool | None = None
        self._closed = False

    @property
    def is_closed(self) -> bool:
        """Whether no call can be made any more."""
        return self._closed

    @property
    def stats(self) -> ClientStats:
        """What has become of calls and sessions so far."""
        return ClientStats(
            calls=self._budget.calls,
            retries=self._budget.retries,
            refused_retries=self._budget.refused,
            restarts=self.leases.restarts,
            resumed_sessions=self.leases.resumed,
            lost_sessions=self.leases.lost,
        )

    def check(self, lease: Lease | None) -> None:
        """Proves that a call may be made, once its lease is not suspended.

        Args:
            lease: The lease that it needs, if any.

        Raises:
            StatepoolError: Why the lease is lost.
            RuntimeError: The client is closed, or belongs to the process that this one was forked from.
        """
        self.leases.check(lease)
        if self._closed:
            raise RuntimeError("the client is closed")

    async def hold(self, lease: Lease | None, deadline: float) -> None:
        """Waits until a lease is not suspended.

        Args:
            lease: The lease, if any.
            deadline: When to give up, by `time.monotonic`.

        Raises:
            UnavailableError: No server has renewed it in time.
            StatepoolError: Why the lease is lost.
            RuntimeError: As `check`.
        """
        self.check(lease)
        if lease is None or not lease.is_suspended:
            return
        changed = asyncio.Event()
        with lease.watched(changed.set):
            while lease.is_suspended:
                try:
                    async with asyncio.timeout(seconds_left(deadline)):
                        await changed.wait()
                except TimeoutError:
                    raise suspended_error(lease) from None
                changed.clear()
                self.check(lease)

    def seconds(self, timeout: float | None) -> float:
        """Tells how long a call may take whose caller has asked for a deadline, or for none.

        Raises:
            ValueError: As `call_seconds`.
        """
        return self.timeout if timeout is None else call_seconds(timeout)

    def deadline(self, timeout: float | None) -> float:
        """Tells when a call that begins now must have ended, by `time.monotonic`."""
        return time.monotonic() + self.seconds(timeout)

    async def execute(self, call: Call[T], timeout: float | None, lease: Lease | None = None) -> T:
        """Executes a call.

        Args:
            call: The call.
            timeout: Deadline in seconds; None: the client's.
            lease: The lease that it needs, if any.

        Raises:
            StatepoolError: What the server raised, what became of the connection, or why the lease is lost.
            RuntimeError: The client is closed, or belongs to the process that this one was forked from.
        """
        with tracing.span_of(call.rpc, self._metadata) as metadata:
            return await self._execute(call, timeout, lease, metadata)

    async def _execute(self, call: Call[T], timeout: float | None, lease: Lease | None, metadata: Metadata) -> T:
        attempts = Attempts(self._budget, self.seconds(timeout) + call.extra_seconds)
        method = self._unary.get(call.rpc.path) or self._register(call.rpc)
        while True:
            await self.hold(lease, attempts.deadline)
            try:
                response = await method(call.under(lease), timeout=attempts.left, metadata=metadata)
            except grpc.RpcError as error:
                failure = self.leases.failed(lease, error_of_cut_rpc(error))
                if attempts.is_repeated and call.was_done(failure):
                    return call.unheard()
                pause = attempts.pause_after(failure, is_resumed=lease is not None and lease.is_suspended)
                if pause is None:
                    raise failure from error
                await asyncio.sleep(pause)
            except asyncio.CancelledError:
                self._check_not_closed_meanwhile()
                raise
            else:
                self.leases.saw_incarnation(response.incarnation)
                self.leases.check(lease)  # what a lost session was given is not its own any more
                return call.parse(response)

    async def read(self, reader: ImageReader, deadline: float, lease: Lease) -> AsyncGenerator[Chunk, None]:
        """Executes a ReadBlocks stream; it is cancelled when the iterator is closed early.

        Raises:
            StatepoolError: As `execute`; `DataLossError` where bytes are wrong or missing.
        """
        await self.hold(lease, deadline)
        reader.request.session.CopyFrom(lease.opened.ref)
        images = self._images(rpc.READ_BLOCKS, reader, reader.accept, deadline, lease)
        async with contextlib.aclosing(images) as chunks:
            async for chunk in chunks:
                yield chunk

    def pull(
        self, reader: TransferReader, take: Callable[[UncheckedChunk], C], deadline: float
    ) -> AsyncGenerator[C, None]:
        """Executes a PullBlocks stream; it is cancelled when the iterator is closed early.

        Args:
            reader: What is to come.
            take: `TransferReader.accept`, or `TransferReader.follow`, which leaves the checksums to the caller.
            deadline: When it must have ended, by `time.monotonic`, but for the time that the bytes need.

        Raises:
            StatepoolError: As `execute`; `DataLossError` where bytes are wrong or missing.
        """
        self.check(None)
        return self._images(rpc.PULL_BLOCKS, reader, take, deadline, None)

    async def write(
        self,
        messages: Callable[[], Iterator[block_pb2.WriteBlocksRequest]],
        deadline: float,
        extra_seconds: float,
        lease: Lease,
    ) -> int:
        """Executes a WriteBlocks stream, again where it ended and nobody knows why: bytes may be written twice.

        Returns:
            Bytes written.

        Raises:
            StatepoolError: As `execute`.
        """
        await self.hold(lease, deadline)
        method = self._open_channel().stream_unary(*rpc.WRITE_BLOCKS.stub)
        attempts = Attempts(self._budget, seconds_left(deadline) + extra_seconds)
        with tracing.span_of(rpc.WRITE_BLOCKS, self._metadata) as metadata:
            while True:
                call = method(messages(), timeout=attempts.left, metadata=metadata)
                ending = Ending(call)
                try:
                    return (await call).written_bytes
                except grpc.RpcError as error:
                    failure = self.leases.failed(lease, error_of_rpc(ending.error(error)))
                    pause = attempts.pause_after(failure, is_resumed=False) if ending.is_lost else None
                    if pause is None:
                        raise failure from error
                    await asyncio.sleep(pause)
                except asyncio.CancelledError:
                    self._check_not_closed_meanwhile()
                    raise

    async def watch(
        self, request: pool_pb2.WatchBlocksRequest, silence: float
    ) -> AsyncGenerator[pool_pb2.WatchBlocksResponse, None]:
        """Executes a WatchBlocks stream; it is cancelled when the iterator is closed.

        Args:
            request: What opens it.
            silence: Seconds without a word after which the server is given up.

        Raises:
            UnavailableError: Nothing was heard for so long, or the server has ended the stream.
            StatepoolError: As `execute`.
        """
        self.check(None)
        responses: Any = self._open_channel().unary_stream(*rpc.WATCH_BLOCKS.stub)(request, metadata=self._metadata)
        alarm = Alarm()
        try:
            while True:
                response = await alarm.within(time.monotonic() + silence, responses.read())
                if response is grpc.aio.EOF:
                    raise UnavailableError("the server ended the stream")
                self.leases.saw_incarnation(response.incarnation)
                yield response
        except TimeoutError:
            raise UnavailableError(f"nothing was heard for {silence:g} s") from None
        except grpc.RpcError as error:
            raise self.leases.failed(None, error_of_cut_rpc(error)) from error
        except asyncio.CancelledError:
            self._check_not_closed_meanwhile()
            raise
        finally:
            alarm.stop()
            responses.cancel()

    def keep_alive(self, requests: AsyncIterator[session_pb2.KeepAliveRequest]) -> KeepAliveStream:
        """Opens a KeepAlive stream; it has no deadline, its keeper watches it."""
        return self._open_channel().stream_stream(*rpc.KEEP_ALIVE.stub)(requests, metadata=self._metadata)

    def schedule(self) -> ScheduleStream:
        """Opens a Schedule stream; it has no deadline, each step's has its scheduler."""
        return self._open_channel().stream_stream(*rpc.SCHEDULE.stub)(metadata=self._metadata)

    async def pool(self, deadline: float) -> Pool:
        """Returns the pool as it was when first asked; its layout and limits last as long as the server process.

        Args:
            deadline: When to give up asking, by `time.monotonic`.

        Raises:
            StatepoolError: As `execute`.
        """
        if self._pool is None or self._pool.incarnation != self.leases.incarnation:
            self._pool = await self.execute(calls.pool.get_pool(), seconds_left(deadline))
        return self._pool

    async def release(self, lease: Lease) -> bool:
        """Gives a lease back as well as it can: where the server cannot be reached, the lease ends by itself.

        Returns:
            Whether the server knows, or needs not to.
        """
        if self.leases.is_foreign() or self._closed:
            return True
        deadline = time.monotonic() + RELEASE_SECONDS
        with contextlib.suppress(StatepoolError):
            await self.hold(lease, deadline)
        if not self.leases.give_back(lease):
            return True
        try:
            await self.execute(calls.sessions.delete_session(lease.opened.ref), seconds_left(deadline))
        except LOSING_ERRORS:
            return True
        except StatepoolError as error:
            log.debug("session %d was not deleted: %s", lease.opened.ref.session_id, error)
            return False
        return True

    async def close(self) -> None:
        """Closes the channel; calls under way end with `CancelledError`."""
        self._closed = True
        if self._channel is not None:
            await self._channel.close()

    def _open_channel(self) -> grpc.aio.Channel:
        # A channel of grpc.aio belongs to the event loop that runs when it is made, so it is made by the first call.
        if self._channel is None:
            if self._credentials is None:
                self._channel = grpc.aio.insecure_channel(self.target, self._options)
            else:
                self._channel = grpc.aio.secure_channel(self.target, self._credentials, self._options)
        return self._channel

    async def _images(
        self,
        called: Rpc[Any, Any],
        reader: ImageReader | TransferReader,
        take: Callable[[UncheckedChunk], C],
        deadline: float,
        lease: Lease | None,
    ) -> AsyncGenerator[C, None]:
        """Executes a stream of images and checks that it is whole."""
        path, encode, _ = called.stub
        method = self._open_channel().unary_stream(path, encode, decode_chunk)
        with tracing.span_of(called, self._metadata) as metadata:
            seconds = seconds_left(deadline) + reader.extra_seconds
            responses = method(reader.request, timeout=seconds, metadata=metadata)
            try:
                async for response in responses:
                    yield take(response)
            except grpc.RpcError as error:
                raise self.leases.failed(lease, error_of_rpc(error)) from error
            except asyncio.CancelledError:
                self._check_not_closed_meanwhile()
                raise
            finally:
                responses.cancel()
            reader.finish()

    def _register(self, called: Rpc[Any, Any]) -> grpc.aio.UnaryUnaryMultiCallable[Any, Any]:
        return self._unary.setdefault(called.path, self._open_channel().unary_unary(*called.stub))

    def _check_not_closed_meanwhile(self) -> None:
        # Closing a channel of grpc.aio cancels its calls, which would look as if somebody had cancelled their tasks.
        task = asyncio.current_task()
        if self._closed and task is not None and not task.cancelling():
            raise CancelledError("the client was closed")
