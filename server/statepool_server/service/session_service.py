"""SessionService: leases."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import structlog
from google.protobuf.message import Message

from statepool.errors import BadFieldError, StatepoolError
from statepool.status import error_to_wire
from statepool.v1 import session_pb2 as pb
from statepool.v1 import types_pb2
from statepool_server import convert
from statepool_server.answers import SessionInfo
from statepool_server.service.calls import Context
from statepool_server.service.core import Core
from statepool_server.service.ledger import Kind, MessageCodec
from statepool_server.service.replays import Replays, Reply, Ticket
from statepool_server.service.stalls import Stalls

_NO_SESSION = 0
_log = structlog.get_logger("statepool.sessions")


class SessionService:
    """Handlers of ``statepool.v1.SessionService``."""

    def __init__(self, core: Core, lease_changed: Callable[[], None], stalls: Stalls) -> None:
        """Builds the handlers.

        Args:
            core: What the services share.
            lease_changed: Called when a lease may now be the next to end.
            stalls: Bounds how long a peer may stand still.
        """
        self._core = core
        self._lease_changed = lease_changed
        self._stalls = stalls
        core.ledger.register(Kind.CREATE_SESSION, MessageCodec(pb.CreateSessionRequest), self._create)
        core.ledger.register(Kind.KEEP_ALIVE, MessageCodec(pb.KeepAliveRequest), self._keep_alive, can_be_refused=False)
        core.ledger.register(
            Kind.DELETE_SESSION, MessageCodec(pb.DeleteSessionRequest), self._delete, can_be_refused=False
        )

    async def CreateSession(self, request: pb.CreateSessionRequest, _context: Context) -> Message:
        """Opens or takes over a session."""
        core = self._core
        reply: Reply | None = core.replays.find(_ticket(request))
        if reply is None:
            if request.tenant and not core.pool.sessions.has_owner(request.tenant, request.owner_key):
                core.quotas.check_session(request.tenant)
            reply = core.ledger.perform(Kind.CREATE_SESSION, request)
            self._lease_changed()
            response: Any = reply.response
            if response.taken_over:
                core.sessions_changed()
            opened = response.session
            _log.info("session opened", session_id=opened.ref.session_id, owner_key=opened.owner_key)
        return reply.response

    async def KeepAlive(self, requests: AsyncIterator[pb.KeepAliveRequest], context: Context) -> None:
        """Renews leases for as long as the client likes."""
        async for request in requests:
            self._core.convert.batch(len(request.sessions), "sessions")
            response = self._core.ledger.perform(Kind.KEEP_ALIVE, request)
            self._lease_changed()
            await self._stalls.moving(context.write(response), "the reader")

    async def GetSession(self, request: pb.GetSessionRequest, _context: Context) -> pb.GetSessionResponse:
        """Returns one session."""
        session = self._core.pool.get_session(request.session_id)
        return pb.GetSessionResponse(incarnation=self._core.incarnation, session=self._to_wire(session))

    async def ListSessions(self, request: pb.ListSessionsRequest, _context: Context) -> pb.ListSessionsResponse:
        """Lists a page of sessions."""
        core = self._core
        after, size = core.convert.page(request.page_size, request.page_token)
        sessions = core.pool.list_sessions(after, size)
        return pb.ListSessionsResponse(
            incarnation=core.incarnation,
            sessions=[self._to_wire(session) for session in sessions],
            next_page_token=core.convert.page_token(sessions[-1].session_id) if len(sessions) == size else "",
        )

    async def DeleteSession(self, request: pb.DeleteSessionRequest, _context: Context) -> pb.DeleteSessionResponse:
        """Ends a session."""
        response: pb.DeleteSessionResponse = self._core.ledger.perform(Kind.DELETE_SESSION, request)
        self._core.sessions_changed()
        session_id, released = request.session.session_id, response.released_references
        _log.info("session deleted", session_id=session_id, released_references=released)
        return response

    def _create(self, request: pb.CreateSessionRequest, now_ns: int) -> Reply:
        core = self._core
        ttl_ns = core.convert.ttl_ns(request.ttl)
        owner_key = core.convert.name(request.owner_key, "owner_key")
        if request.on_conflict not in pb.OnConflict.values():
            raise BadFieldError(f"on_conflict: {request.on_conflict} is not known", field="on_conflict")
        take_over = request.on_conflict == pb.ON_CONFLICT_TAKE_OVER
        session, taken_over = core.pool.create_session(
            owner_key, ttl_ns, take_over, now_ns, core.convert.name(request.tenant, "tenant")
        )
        response = pb.CreateSessionResponse(
            incarnation=core.incarnation, session=self._to_wire(session), taken_over=taken_over
        )
        return core.replays.keep(_ticket(request), response)

    def _keep_alive(self, request: pb.KeepAliveRequest, now_ns: int) -> pb.KeepAliveResponse:
        results = [self._renew(ref, now_ns) for ref in request.sessions]
        return pb.KeepAliveResponse(incarnation=self._core.incarnation, results=results)

    def _delete(self, request: pb.DeleteSessionRequest, _now_ns: int) -> pb.DeleteSessionResponse:
        session_id, epoch = self._core.convert.session(request.session, self._core.continued_incarnations)
        released = self._core.pool.delete_session(session_id, epoch)
        self._core.forget_sessions([session_id])
        return pb.DeleteSessionResponse(incarnation=self._core.incarnation, released_references=released)

    def _renew(self, ref: types_pb2.SessionRef, now_ns: int) -> pb.KeepAliveResult:
        try:
            session_id, epoch = self._core.convert.session(ref, self._core.continued_incarnations)
            expires_ns = self._core.pool.keep_alive(session_id, epoch, now_ns)
        except StatepoolError as error:
            return pb.KeepAliveResult(session_id=ref.session_id, error=error_to_wire(error))
        return pb.KeepAliveResult(session_id=ref.session_id, expire_time=convert.wall_clock(expires_ns))

    def _to_wire(self, session: SessionInfo) -> pb.Session:
        ref = types_pb2.SessionRef(
            session_id=session.session_id, epoch=session.epoch, incarnation=self._core.incarnation
        )
        return pb.Session(
            ref=ref,
            owner_key=session.owner_key,
            ttl=convert.duration(session.ttl_ns),
            expire_time=convert.wall_clock(session.expires_ns),
            block_count=session.block_count,
            tenant=session.tenant,
        )


def _ticket(request: pb.CreateSessionRequest) -> Ticket:
    return Replays.ticket(_NO_SESSION, request.request_id, request)
