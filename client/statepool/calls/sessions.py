"""Calls of SessionService."""

from dataclasses import dataclass
from datetime import UTC

from statepool import rpc
from statepool.calls.fields import duration, new_request_id
from statepool.descriptions import SessionInfo
from statepool.errors import SessionNotFoundError
from statepool.rpc import Call
from statepool.v1 import session_pb2 as pb
from statepool.v1 import types_pb2


@dataclass(frozen=True, slots=True)
class Opened:
    """A session as CreateSession answers it."""

    ref: types_pb2.SessionRef
    """What every other call carries."""
    owner_key: str
    """The owner's name for it."""
    ttl: float
    """Seconds from a renewal to the lease's end."""
    taken_over: bool
    """Whether the session existed and was taken over."""


def create_session(ttl: float, owner_key: str, take_over: bool) -> Call[Opened]:
    """Builds CreateSession.

    Raises:
        ValueError: ttl is no duration.
    """
    request = pb.CreateSessionRequest(
        request_id=new_request_id(),
        ttl=duration(ttl, "ttl"),
        owner_key=owner_key,
        on_conflict=pb.ON_CONFLICT_TAKE_OVER if take_over else pb.ON_CONFLICT_FAIL,
    )
    return rpc.CREATE_SESSION.call(request, _opened)


def get_session(session_id: int) -> Call[SessionInfo]:
    """Builds GetSession."""
    return rpc.GET_SESSION.call(
        pb.GetSessionRequest(session_id=session_id), lambda response: _session_info(response.session)
    )


def list_sessions(page_size: int, page_token: str) -> Call[tuple[tuple[SessionInfo, ...], str]]:
    """Builds ListSessions for one page; the result carries the next page's token, empty after the last."""
    return rpc.LIST_SESSIONS.call(
        pb.ListSessionsRequest(page_size=page_size, page_token=page_token),
        lambda response: (tuple(map(_session_info, response.sessions)), response.next_page_token),
    )


def delete_session(session: types_pb2.SessionRef) -> Call[int]:
    """Builds DeleteSession; the result is the number of references that were dropped."""
    request = pb.DeleteSessionRequest(session=session)
    return rpc.DELETE_SESSION.call(request, lambda response: response.released_references, gone=SessionNotFoundError)


def _opened(response: pb.CreateSessionResponse) -> Opened:
    session = response.session
    return Opened(session.ref, session.owner_key, session.ttl.ToNanoseconds() / 1e9, response.taken_over)


def _session_info(session: pb.Session) -> SessionInfo:
    return SessionInfo(
        session_id=session.ref.session_id,
        epoch=session.ref.epoch,
        incarnation=session.ref.incarnation,
        owner_key=session.owner_key,
        ttl=session.ttl.ToNanoseconds() / 1e9,
        expire_time=session.expire_time.ToDatetime(UTC),
        block_count=session.block_count,
        tenant=session.tenant,
    )
