"""When which leases are renewed, and what the answers mean: the keep-alive of both clients, without its I/O.

One KeepAlive stream carries the renewals of all leases, with at most one request unanswered. The keepers of the two
clients do what `Renewals` says and tell it what happened.
"""

import math

from statepool.backoff import Backoff
from statepool.lease import LOSING_ERRORS, RENEWALS_PER_TTL, Lease
from statepool.leases import Leases
from statepool.v1.session_pb2 import KeepAliveRequest, KeepAliveResponse

MAX_SESSIONS_PER_REQUEST = 1024
"""Leases renewed by one request; more follow in the next."""


class Renewals:
    """Decides what to send on the KeepAlive stream. Used by one thread or task only."""

    def __init__(self, leases: Leases) -> None:
        self._leases = leases
        self._asked: list[Lease] = []
        self._asked_at = 0.0
        self._backoff = Backoff()
        self._retry_at = 0.0

    def next_at(self) -> float:
        """Tells when to look again, by `statepool.clock`; infinity when there is no lease."""
        live = self._leases.live()
        if not live:
            return math.inf
        renew_at = self._answer_due_at() if self._asked else max(self._retry_at, min(lease.renew_at for lease in live))
        return min(renew_at, min(lease.lost_at for lease in live))

    def expire(self, now: float) -> None:
        """Gives up the leases that have ended and can be resumed no longer."""
        self._leases.expire([lease for lease in self._leases.live() if lease.lost_at <= now])

    def request(self, now: float) -> KeepAliveRequest | None:
        """Builds the request to send now, if any.

        Leases that are due within another half period come along, so that all fall into step.
        """
        if self._asked or now < self._retry_at:
            return None
        live = self._leases.live()
        if not any(lease.renew_at <= now for lease in live):
            return None
        due = sorted(live, key=lambda lease: lease.renew_at)[:MAX_SESSIONS_PER_REQUEST]
        self._asked = [lease for lease in due if lease.renew_at - now <= lease.opened.ttl / RENEWALS_PER_TTL / 2]
        self._asked_at = now
        for lease in self._asked:
            lease.asked(now)
        return KeepAliveRequest(sessions=[lease.opened.ref for lease in self._asked])

    def is_overdue(self, now: float) -> bool:
        """Tells whether the stream owes an answer for so long that it must be given up."""
        return bool(self._asked) and now >= self._answer_due_at()

    def answered(self, response: KeepAliveResponse) -> None:
        """Takes the answer to the last request."""
        asked, self._asked = self._asked, []
        self._backoff.worked()
        self._leases.saw_incarnation(response.incarnation)
        for lease, result in zip(asked, response.results, strict=False):
            if not result.HasField("error"):
                self._leases.granted(lease, self._asked_at, response.incarnation)
                continue
            from statepool.status import error_from_wire

            error = error_from_wire(result.error)
            if isinstance(error, LOSING_ERRORS):
                self._leases.lose([lease], error)

    def broke(self, now: float) -> None:
        """Notes that the stream ended; what it owed is asked again on the next one.

        So is what may be resumed: its server may have ended, and the sooner its successor renews it the better.
        """
        self._retry_at = now + self._backoff.broke()
        for lease in (*self._asked, *(lease for lease in self._leases.live() if lease.may_be_resumed)):
            lease.renew_at = now
        self._asked = []

    def _answer_due_at(self) -> float:
        return self._asked_at + min(lease.opened.ttl for lease in self._asked) / RENEWALS_PER_TTL
