"""Keeps the sessions of a client alive, in tasks of its event loop; see `statepool.sync.keeper`."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import suppress

import grpc

from statepool.aio.transport import AsyncTransport
from statepool.clock import now
from statepool.lease import Lease
from statepool.renewals import Renewals
from statepool.v1.session_pb2 import KeepAliveRequest, KeepAliveResponse


class _Stream:
    """One KeepAlive stream: requests go into a queue, what comes back goes into the keeper's inbox."""

    def __init__(self, transport: AsyncTransport, inbox: "asyncio.Queue[_Event]") -> None:
        self._requests: asyncio.Queue[KeepAliveRequest | None] = asyncio.Queue()
        self._inbox = inbox
        self._responses = transport.keep_alive(self._each_request())
        self._receiver = asyncio.create_task(self._receive(), name="statepool-keep-alive-responses")

    def send(self, request: KeepAliveRequest) -> None:
        self._requests.put_nowait(request)

    def close(self) -> None:
        self._responses.cancel()
        self._receiver.cancel()
        self._requests.put_nowait(None)

    async def _each_request(self) -> AsyncIterator[KeepAliveRequest]:
        while (request := await self._requests.get()) is not None:
            yield request

    async def _receive(self) -> None:
        with suppress(grpc.RpcError):  # every end of a stream means the same: open another
            async for response in self._responses:
                self._inbox.put_nowait((self, response))
        self._inbox.put_nowait((self, None))


_Event = tuple[_Stream | None, KeepAliveResponse | None]
"""A response of a stream; without a response, the stream's end; without a stream, a reason to look again."""


class AsyncKeeper:
    """Renews all leases of a client over one stream, from the first lease until it is closed."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport
        self._renewals = Renewals(transport.leases)
        self._inbox: asyncio.Queue[_Event] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._stream: _Stream | None = None
        transport.leases.on_suspended = lambda: self._inbox.put_nowait((None, None))

    def keep(self, lease: Lease) -> None:
        """Takes a lease; it is renewed until it is lost or given back."""
        self._transport.leases.add(lease)
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="statepool-keep-alive")
        self._inbox.put_nowait((None, None))

    async def close(self) -> None:
        """Stops renewing."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        try:
            while True:
                at = now()
                self._renewals.expire(at)
                if self._renewals.is_overdue(at):
                    self._hang_up(at)
                request = self._renewals.request(at)
                if request is not None:
                    self._open().send(request)
                await self._wait()
        finally:
            if self._stream is not None:
                self._stream.close()

    async def _wait(self) -> None:
        seconds = self._renewals.next_at() - now()
        try:
            async with asyncio.timeout(None if math.isinf(seconds) else max(0.0, seconds)):
                stream, response = await self._inbox.get()
        except TimeoutError:
            return
        if stream is None or stream is not self._stream:
            return
        if response is None:
            self._hang_up(now())
        else:
            self._renewals.answered(response)

    def _hang_up(self, at: float) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream = None
        self._renewals.broke(at)

    def _open(self) -> _Stream:
        if self._stream is None:
            self._stream = _Stream(self._transport, self._inbox)
        return self._stream
