"""Executes calls on a gRPC channel and turns its failures into statepool's errors."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

import grpc

from statepool import calls, rpc, tracing
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
from statepool.errors import StatepoolError, UnavailableError
from statepool.lease import LOSING_ERRORS, Lease, log, suspended_error
from statepool.leases import Leases
from statepool.retries import Attempts, ClientStats, RetryBudget
from statepool.rpc import Call, Metadata, Rpc
from statepool.security import Security
from statepool.sync.silence import Silence
from statepool.v1 import block_pb2, pool_pb2, sequence_pb2, session_pb2

if TYPE_CHECKING:
    from statepool.byte_chunks import UncheckedChunk
    from statepool.calls.images import ImageReader
    from statepool.calls.transfers import TransferReader
    from statepool.descriptions import Pool
    from statepool.results import Chunk

C = TypeVar("C")
T = TypeVar("T")
Response_co = TypeVar("Response_co", covariant=True)


class ResponseStream(Protocol[Response_co]):
    """A stream both ways that is under way."""

    def __iter__(self) -> Iterator[Response_co]: ...

    def cancel(self) -> object:
        """Ends it."""


KeepAliveStream: TypeAlias = ResponseStream[session_pb2.KeepAliveResponse]
"""A KeepAlive stream that is under way."""

ScheduleStream: TypeAlias = ResponseStream[sequence_pb2.ScheduleResponse]
"""A Schedule stream that is under way."""


class Transport:
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
        arguments, credentials = channel_options([*security.options, *options]), security.credentials
        self._metadata = security.metadata
        if credentials is None:
            self._channel = grpc.insecure_channel(target, arguments)
        else:
            self._channel = grpc.secure_channel(target, credentials, arguments)
        self._unary: dict[str, grpc.UnaryUnaryMultiCallable[Any, Any]] = {}
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

    def hold(self, lease: Lease | None, deadline: float) -> None:
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
        changed = threading.Event()
        with lease.watched(changed.set):
            while lease.is_suspended:
                if not changed.wait(seconds_left(deadline)):
                    raise suspended_error(lease)
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

    def execute(self, call: Call[T], timeout: float | None, lease: Lease | None = None) -> T:
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
            return self._execute(call, timeout, lease, metadata)

    def _execute(self, call: Call[T], timeout: float | None, lease: Lease | None, metadata: Metadata) -> T:
        attempts = Attempts(self._budget, self.seconds(timeout) + call.extra_seconds)
        method = self._unary.get(call.rpc.path) or self._register(call.rpc)
        while True:
            self.hold(lease, attempts.deadline)
            try:
                response = method(call.under(lease), timeout=attempts.left, metadata=metadata)
            except grpc.RpcError as error:
                failure = self.leases.failed(lease, error_of_cut_rpc(error))
                if attempts.is_repeated and call.was_done(failure):
                    return call.unheard()
                pause = attempts.pause_after(failure, is_resumed=lease is not None and lease.is_suspended)
                if pause is None:
                    raise failure from error
                time.sleep(pause)
            else:
                self.leases.saw_incarnation(response.incarnation)
                self.leases.check(lease)  # what a lost session was given is not its own any more
                return call.parse(response)

    def read(self, reader: ImageReader, deadline: float, lease: Lease) -> Iterator[Chunk]:
        """Executes a ReadBlocks stream; it is cancelled when the iterator is closed early.

        Raises:
            StatepoolError: As `execute`; `DataLossError` where bytes are wrong or missing.
        """
        self.hold(lease, deadline)
        reader.request.session.CopyFrom(lease.opened.ref)
        yield from self._images(rpc.READ_BLOCKS, reader, reader.accept, deadline, lease)

    def pull(self, reader: TransferReader, take: Callable[[UncheckedChunk], C], deadline: float) -> Iterator[C]:
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

    def write(
        self,
        messages: Iterator[block_pb2.WriteBlocksRequest],
        deadline: float,
        extra_seconds: float,
        lease: Lease,
    ) -> int:
        """Executes a WriteBlocks stream.

        Returns:
            Bytes written.

        Raises:
            StatepoolError: As `execute`.
        """
        self.hold(lease, deadline)
        method = self._channel.stream_unary(*rpc.WRITE_BLOCKS.stub)
        with tracing.span_of(rpc.WRITE_BLOCKS, self._metadata) as metadata:
            try:
                response = method(messages, timeout=seconds_left(deadline) + extra_seconds, metadata=metadata)
            except grpc.RpcError as error:
                raise self.leases.failed(lease, error_of_rpc(error)) from error
            return response.written_bytes

    def watch(self, request: pool_pb2.WatchBlocksRequest, silence: float) -> Iterator[pool_pb2.WatchBlocksResponse]:
        """Executes a WatchBlocks stream; it is cancelled when the iterator is closed.

        Args:
            request: What opens it.
            silence: Seconds without a word after which the server is given up.

        Raises:
            UnavailableError: Nothing was heard for so long, or the server has ended the stream.
            StatepoolError: As `execute`.
        """
        self.check(None)
        responses = self._channel.unary_stream(*rpc.WATCH_BLOCKS.stub)(request, metadata=self._metadata)
        heard = Silence(silence, responses.cancel)
        try:
            while True:
                with heard.broken():
                    response = next(responses, None)
                if response is None:
                    raise UnavailableError("the server ended the stream")
                self.leases.saw_incarnation(response.incarnation)
                yield response
        except grpc.RpcError as error:
            if heard.is_too_long:
                raise UnavailableError(f"nothing was heard for {silence:g} s") from None
            failure = error_of_rpc(error) if self._closed else error_of_cut_rpc(error)
            raise self.leases.failed(None, failure) from error
        finally:
            heard.end()
            responses.cancel()

    def keep_alive(self, requests: Iterator[session_pb2.KeepAliveRequest]) -> KeepAliveStream:
        """Opens a KeepAlive stream; it has no deadline, its keeper watches it."""
        return self._channel.stream_stream(*rpc.KEEP_ALIVE.stub)(requests, metadata=self._metadata)

    def schedule(self, requests: Iterator[sequence_pb2.ScheduleRequest]) -> ScheduleStream:
        """Opens a Schedule stream; it has no deadline, each step's has its scheduler."""
        return self._channel.stream_stream(*rpc.SCHEDULE.stub)(requests, metadata=self._metadata)

    def pool(self, deadline: float) -> Pool:
        """Returns the pool as it was when first asked; its layout and limits last as long as the server process.

        Args:
            deadline: When to give up asking, by `time.monotonic`.

        Raises:
            StatepoolError: As `execute`.
        """
        if self._pool is None or self._pool.incarnation != self.leases.incarnation:
            self._pool = self.execute(calls.pool.get_pool(), seconds_left(deadline))
        return self._pool

    def release(self, lease: Lease) -> bool:
        """Gives a lease back as well as it can: where the server cannot be reached, the lease ends by itself.

        Returns:
            Whether the server knows, or needs not to.
        """
        if self.leases.is_foreign() or self._closed:
            return True
        deadline = time.monotonic() + RELEASE_SECONDS
        with contextlib.suppress(StatepoolError):
            self.hold(lease, deadline)
        if not self.leases.give_back(lease):
            return True
        try:
            self.execute(calls.sessions.delete_session(lease.opened.ref), seconds_left(deadline))
        except LOSING_ERRORS:
            return True
        except StatepoolError as error:
            log.debug("session %d was not deleted: %s", lease.opened.ref.session_id, error)
            return False
        return True

    def close(self) -> None:
        """Closes the channel; calls under way end with `CancelledError`."""
        self._closed = True
        self._channel.close()

    def _images(
        self,
        called: Rpc[Any, Any],
        reader: ImageReader | TransferReader,
        take: Callable[[UncheckedChunk], C],
        deadline: float,
        lease: Lease | None,
    ) -> Iterator[C]:
        """Executes a stream of images and checks that it is whole."""
        path, encode, _ = called.stub
        method = self._channel.unary_stream(path, encode, decode_chunk)
        with tracing.span_of(called, self._metadata) as metadata:
            seconds = seconds_left(deadline) + reader.extra_seconds
            responses = method(reader.request, timeout=seconds, metadata=metadata)
            try:
                for response in responses:
                    yield take(response)
            except grpc.RpcError as error:
                raise self.leases.failed(lease, error_of_rpc(error)) from error
            finally:
                responses.cancel()
            reader.finish()

    def _register(self, called: Rpc[Any, Any]) -> grpc.UnaryUnaryMultiCallable[Any, Any]:
        return self._unary.setdefault(called.path, self._channel.unary_unary(*called.stub))
