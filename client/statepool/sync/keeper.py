"""Keeps the sessions of a client alive, in daemon threads."""

import math
from queue import Empty, SimpleQueue
from threading import Lock, Thread, current_thread

import grpc

from statepool.clock import now
from statepool.lease import Lease
from statepool.renewals import Renewals
from statepool.sync.transport import KeepAliveStream, Transport
from statepool.v1.session_pb2 import KeepAliveRequest, KeepAliveResponse

JOIN_SECONDS = 1.0
"""How long closing waits for the thread, which may be in the middle of somebody's ``on_lost``."""


class _Stream:
    """One KeepAlive stream: requests go into a queue, what comes back goes into the keeper's inbox.

    gRPC's blocking streams can only be waited for without a limit, so a thread of their own waits.
    """

    def __init__(self, transport: Transport, inbox: "SimpleQueue[_Event]") -> None:
        self._requests: SimpleQueue[KeepAliveRequest | None] = SimpleQueue()
        self._inbox = inbox
        self._responses: KeepAliveStream = transport.keep_alive(iter(self._requests.get, None))
        Thread(target=self._receive, name="statepool-keep-alive-responses", daemon=True).start()

    def send(self, request: KeepAliveRequest) -> None:
        self._requests.put(request)

    def close(self) -> None:
        self._responses.cancel()
        self._requests.put(None)

    def _receive(self) -> None:
        try:
            for response in self._responses:
                self._inbox.put((self, response))
        except grpc.RpcError:  # every end of a stream means the same: open another
            pass
        self._inbox.put((self, None))


_Event = tuple[_Stream | None, KeepAliveResponse | None]
"""A response of a stream; without a response, the stream's end; without a stream, a reason to look again."""


class Keeper:
    """Renews all leases of a client over one stream, from the first lease until it is closed."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._renewals = Renewals(transport.leases)
        self._inbox: SimpleQueue[_Event] = SimpleQueue()
        self._thread: Thread | None = None
        self._starting = Lock()
        self._stream: _Stream | None = None
        self._closed = False
        transport.leases.on_suspended = lambda: self._inbox.put((None, None))

    def keep(self, lease: Lease) -> None:
        """Takes a lease; it is renewed until it is lost or given back."""
        self._transport.leases.add(lease)
        with self._starting:
            if self._thread is None:
                self._thread = Thread(target=self._run, name="statepool-keep-alive", daemon=True)
                self._thread.start()
        self._inbox.put((None, None))

    def close(self) -> None:
        """Stops renewing."""
        self._closed = True
        self._inbox.put((None, None))
        if self._thread is not None and self._thread is not current_thread():
            self._thread.join(JOIN_SECONDS)

    def _run(self) -> None:
        while not self._closed:
            at = now()
            self._renewals.expire(at)
            if self._renewals.is_overdue(at):
                self._hang_up(at)
            request = self._renewals.request(at)
            if request is not None:
                self._open().send(request)
            self._wait()
        if self._stream is not None:
            self._stream.close()

    def _wait(self) -> None:
        seconds = self._renewals.next_at() - now()
        try:
            stream, response = self._inbox.get(timeout=None if math.isinf(seconds) else max(0.0, seconds))
        except Empty:
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
