"""Repeated requests: the same ``request_id`` gets the same answer and changes nothing again."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import xxhash
from google.protobuf import descriptor_pool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from statepool.errors import BadFieldError, RequestIdReusedError
from statepool.v1 import session_pb2

MAX_REQUEST_ID_BYTES = 64
"""Longest request id."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """Names one request so that it is recognised when it comes again."""

    scope: int
    """Session id, 0 for requests before a session exists."""
    request_id: str
    """The caller's id; empty: the request is not remembered."""
    digest: bytes
    """Digest of the request's type and content."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that was given, or will be as soon as its copies are done."""

    digest: bytes
    """Digest of the request that it answers."""
    response: Message
    """The answer."""
    work: int = 0
    """Memory work that must have ended before the answer may go out; 0: none."""


@dataclass(frozen=True, slots=True)
class ReplyState:
    """A remembered answer as plain values."""

    scope: int
    """Session id, or 0."""
    request_id: str
    """The caller's id."""
    digest: bytes
    """Digest of the request."""
    kind: str
    """Full name of the answer's message."""
    response: bytes
    """The answer."""
    work: int
    """Work before it."""


_POOL = descriptor_pool.Default()
_NOTHING: OrderedDict[str, Reply] = OrderedDict()


class Replays:
    """A bounded table of answers per session; the oldest answer of a session goes first.

    Only calls that took effect are kept: a refused call changed nothing and is simply tried again.
    """

    def __init__(self, max_per_scope: int) -> None:
        self._max_per_scope = max_per_scope
        self._replies: dict[int, OrderedDict[str, Reply]] = {}

    @staticmethod
    def ticket(scope: int, request_id: str, request: Message) -> Ticket:
        """Names a request.

        Raises:
            BadFieldError: The id is longer than `MAX_REQUEST_ID_BYTES`.
        """
        if not request_id:
            return Ticket(scope, "", b"")
        if len(request_id.encode()) > MAX_REQUEST_ID_BYTES:
            raise BadFieldError(f"request_id is longer than {MAX_REQUEST_ID_BYTES} bytes", field="request_id")
        content = request.DESCRIPTOR.full_name.encode() + _without_incarnation(request, scope)
        return Ticket(scope, request_id, xxhash.xxh3_128_digest(content))

    def find(self, ticket: Ticket) -> Reply | None:
        """Finds the answer that the request got before.

        Raises:
            RequestIdReusedError: The id was used for another request.
        """
        reply = self._replies.get(ticket.scope, _NOTHING).get(ticket.request_id)
        if reply is not None and reply.digest != ticket.digest:
            raise RequestIdReusedError(
                f"request_id {ticket.request_id!r} was used for another request", field="request_id"
            )
        return reply

    def keep(self, ticket: Ticket, response: Message, work: int = 0) -> Reply:
        """Remembers an answer, if its request has an id."""
        reply = Reply(ticket.digest, response, work)
        if ticket.request_id:
            replies = self._replies.setdefault(ticket.scope, OrderedDict())
            replies[ticket.request_id] = reply
            if len(replies) > self._max_per_scope:
                replies.popitem(last=False)
        return reply

    def forget(self, scope: int) -> None:
        """Forgets a session that has ended."""
        self._replies.pop(scope, None)

    def readdress(self, incarnation: int) -> None:
        """Makes all answers those of another server process, which goes on where the one before has ended."""
        for replies in self._replies.values():
            for reply in replies.values():
                _readdress(reply.response, incarnation)

    def dump(self) -> list[ReplyState]:
        """Writes everything as plain values."""
        return [
            ReplyState(
                scope,
                request_id,
                reply.digest,
                reply.response.DESCRIPTOR.full_name,
                reply.response.SerializeToString(),
                reply.work,
            )
            for scope, replies in self._replies.items()
            for request_id, reply in replies.items()
        ]

    def load(self, state: Sequence[ReplyState]) -> None:
        """Takes a state over; the table must be empty."""
        for row in state:
            response = GetMessageClass(_POOL.FindMessageTypeByName(row.kind)).FromString(row.response)
            self.keep(Ticket(row.scope, row.request_id, row.digest), response, row.work)


def _without_incarnation(request: Any, scope: int) -> bytes:
    """Writes a request so that it stays the same when it is sent again to a server that goes on with the state."""
    if not scope:
        return bytes(request.SerializeToString(deterministic=True))
    incarnation, request.session.incarnation = request.session.incarnation, 0
    content = request.SerializeToString(deterministic=True)
    request.session.incarnation = incarnation
    return bytes(content)


def _readdress(message: Any, incarnation: int) -> None:
    message.incarnation = incarnation
    if isinstance(message, session_pb2.CreateSessionResponse):
        message.session.ref.incarnation = incarnation
