"""What the sessions and schedulers of both clients know without asking the server."""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Callable

from statepool import calls
from statepool.backoff import Backoff
from statepool.errors import (
    DeadlineExceededError,
    IncarnationMismatchError,
    StatepoolError,
    StreamReplacedError,
    UnavailableError,
)
from statepool.lease import Lease, tell
from statepool.leases import Leases
from statepool.pipeline import Pipeline
from statepool.sequences import Execution, Notice, NoticeKind
from statepool.v1.sequence_pb2 import Notice as NoticeMessage
from statepool.v1.sequence_pb2 import ScheduleRequest, ScheduleResponse
from statepool.v1.types_pb2 import SessionRef

MAX_NOTICES = 64
"""Notices that a scheduler keeps; older ones are forgotten."""


class SessionHandle:
    """A session's identity and whether it still holds."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease

    @property
    def session_id(self) -> int:
        """The session."""
        return self._ref.session_id

    @property
    def epoch(self) -> int:
        """Its epoch; a take-over raises it and fences the former owner."""
        return self._ref.epoch

    @property
    def incarnation(self) -> int:
        """The server process that it lives in; another one after the session was resumed."""
        return self._ref.incarnation

    @property
    def owner_key(self) -> str:
        """The name under which it can be taken over; empty: none."""
        return self._lease.opened.owner_key

    @property
    def ttl(self) -> float:
        """Seconds that the lease lasts without a renewal."""
        return self._lease.opened.ttl

    @property
    def taken_over(self) -> bool:
        """Whether it existed before and was taken over, with its blocks."""
        return self._lease.opened.taken_over

    @property
    def error(self) -> StatepoolError | None:
        """Why no call can succeed any more: the session is lost or closed. None while it holds."""
        return self._lease.error

    @property
    def _ref(self) -> SessionRef:
        return self._lease.opened.ref

    def __repr__(self) -> str:
        owner = f" of {self.owner_key!r}" if self.owner_key else ""
        state = "alive" if self.error is None else repr(self.error)
        return f"<{type(self).__name__} {self.session_id} epoch {self.epoch}{owner}, ttl {self.ttl:g} s, {state}>"


class SchedulerHandle:
    """Which steps of a scheduler were not received yet, and what its server told unasked.

    Attributes:
        target: Where its server is, in gRPC's naming.
        notices: The last notices, the newest at the end.
    """

    def __init__(
        self,
        target: str,
        leases: Leases,
        lease: Lease,
        execution: Execution,
        on_notice: Callable[[Notice], object] | None,
    ) -> None:
        self.target = target
        self.notices: deque[Notice] = deque(maxlen=MAX_NOTICES)
        self._leases = leases
        self._lease = lease
        self._pipeline = Pipeline(lease.opened.ref, execution)
        self._on_notice = on_notice
        self._is_under_pressure = self._is_going_away = False
        self._backoff = Backoff()
        self._retry_at = 0.0
        self._broken_by: StatepoolError | None = None
        self._replaced_by: StatepoolError | None = None
        self._is_closed = False

    @property
    def unreceived_steps(self) -> tuple[int, ...]:
        """Numbers of the steps that were sent and whose outcomes were not received, in the order of sending."""
        return self._pipeline.unreceived

    @property
    def next_step(self) -> int:
        """Number of the step that is sent next; 0: the server has not told yet where the session stands."""
        return self._pipeline.next_step

    @property
    def is_under_pressure(self) -> bool:
        """Whether the server's last word on this stream is that blocks are short: preempt or admit less."""
        return self._is_under_pressure

    @property
    def is_going_away(self) -> bool:
        """Whether the server is going to stop: it refuses admissions (`DrainingError`) and takes other steps."""
        return self._is_going_away

    def _requests(self) -> list[ScheduleRequest]:
        """Lists what a new stream is to be sent first."""
        self._is_under_pressure = False  # the relief may have been told in between
        return self._pipeline.requests()

    def _took(self, response: ScheduleResponse) -> None:
        """Takes an answer in, and raises if the session is lost meanwhile."""
        self._broken_by = None
        self._backoff.worked()
        self._leases.saw_incarnation(response.incarnation)
        self._leases.check(self._lease)
        self._pipeline.answered(response)

    def _broke(self, error: StatepoolError) -> None:
        """Notes that the stream ended, and raises unless another is to be opened."""
        self._leases.failed(self._lease, error)
        if isinstance(error, StreamReplacedError):
            self._replaced_by = error
        is_resumed = isinstance(error, IncarnationMismatchError) and self._lease.error is None
        if not (isinstance(error, UnavailableError) or is_resumed):
            raise error
        self._broken_by = error
        self._retry_at = time.monotonic() + self._backoff.broke()

    def _check_stream(self) -> None:
        """Raises if no stream is to be opened any more: two schedulers of a session would end each other's for ever."""
        if self._is_closed:
            raise RuntimeError("the scheduler is closed")
        if self._replaced_by is not None:
            raise copy.copy(self._replaced_by)

    def _late(self) -> StatepoolError:
        """Makes the error of a caller whose deadline has passed: why there is no stream, or that an answer lacks."""
        return self._broken_by or DeadlineExceededError(f"no answer in time; not received are {self.unreceived_steps}")

    def _noticed(self, message: NoticeMessage) -> None:
        """Takes news in."""
        notice = calls.sequences.notice(message)
        if notice is None:
            return
        if notice.kind is NoticeKind.GOING_AWAY:
            self._is_going_away = True
        else:
            self._is_under_pressure = notice.kind is NoticeKind.PRESSURE
        self.notices.append(notice)
        tell(self._on_notice, notice, f"on_notice of session {self._lease.opened.ref.session_id}")

    def __repr__(self) -> str:
        session = self._lease.opened.ref.session_id
        return f"<{type(self).__name__} of session {session}, not received: {list(self.unreceived_steps)}>"
