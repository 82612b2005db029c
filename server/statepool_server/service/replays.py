"""Repeated requests: the same ``request_id`` gets the same answer and changes nothing again."""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass

import xxhash
from google.protobuf.message import Message

from statepool.errors import BadFieldError, RequestIdReusedError
from statepool.v1.types_pb2 import SessionRef

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
    done: "asyncio.Future[None] | None" = None
    """Done when the answer may go out; None: at once."""


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
        content = request.DESCRIPTOR.full_name.encode() + _timeless(request)
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

    def keep(self, ticket: Ticket, response: Message, done: "asyncio.Future[None] | None" = None) -> Reply:
        """Remembers an answer, if its request has an id."""
        reply = Reply(ticket.digest, response, done)
        if ticket.request_id:
            replies = self._replies.setdefault(ticket.scope, OrderedDict())
            replies[ticket.request_id] = reply
            if len(replies) > self._max_per_scope:
                replies.popitem(last=False)
        return reply

    def forget(self, scope: int) -> None:
        """Forgets a session that has ended."""
        self._replies.pop(scope, None)


def _timeless(request: Message) -> bytes:
    """Encodes a request without the incarnation, under which it may come again after a restart."""
    session: SessionRef | None = getattr(request, "session", None)
    if session is None:
        return request.SerializeToString(deterministic=True)
    incarnation, session.incarnation = session.incarnation, 0
    try:
        return request.SerializeToString(deterministic=True)
    finally:
        session.incarnation = incarnation
