"""The leases of one client, and the server process that granted them. No I/O; safe to use from threads."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable, Iterable

from statepool.clock import now
from statepool.errors import (
    IncarnationMismatchError,
    OverloadedError,
    SessionExpiredError,
    SessionNotFoundError,
    StatepoolError,
    UnavailableError,
)
from statepool.lease import LOSING_ERRORS, Lease, tell

_forks = 0
"""Forks that lie between this process and the one that began as this program: quicker to tell than the process id."""


def _forked() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_forked)


class Leases:
    """The leases of one client, and the server process that granted them.

    Attributes:
        incarnation: The server process that answered last; 0 before the first answer.
        on_suspended: Called, on any thread, when leases were suspended: a renewal is due.
        restarts: Server processes that were seen to answer in place of another.
        resumed: Leases that were taken up again by another server process.
        lost: Leases that were lost.
    """

    def __init__(self) -> None:
        self.incarnation = 0
        self.on_suspended: Callable[[], object] = lambda: None
        self.restarts = self.resumed = self.lost = 0
        self._lock = threading.Lock()
        self._live: set[Lease] = set()
        self._past_incarnations: set[int] = set()
        self._pid, self._forks = os.getpid(), _forks

    def live(self) -> list[Lease]:
        """Lists the leases that are neither lost nor given back."""
        with self._lock:
            return list(self._live)

    def add(self, lease: Lease) -> None:
        """Takes a new lease."""
        with self._lock:
            self._live.add(lease)

    def give_back(self, lease: Lease) -> bool:
        """Forgets a lease that its owner has no more use for; no call of it can succeed from then on.

        Returns:
            Whether it still held, so that the server is to be told.
        """
        with self._lock:
            if lease not in self._live:
                return False
            self._live.discard(lease)
            lease.error = SessionNotFoundError("the session is closed")
        lease.changed()
        return True

    def check(self, lease: Lease | None) -> None:
        """Proves that a lease is not lost.

        Args:
            lease: The lease that a call needs, if any.

        Raises:
            StatepoolError: The error with which the lease was lost.
            RuntimeError: This process was forked from the one that made the client: it has neither gRPC's threads nor a
                right to its parent's sessions.
        """
        if self.is_foreign():
            raise RuntimeError(f"the client belongs to process {self._pid}; make a new one after a fork")
        if lease is None:
            return
        if lease.error is None and now() >= lease.lost_at:
            self.expire([lease])
        if lease.error is not None:
            raise copy.copy(lease.error)

    def is_foreign(self) -> bool:
        """Tells whether this process was forked from the one that made the client."""
        return self._forks != _forks

    def lose(self, leases: Iterable[Lease], error: StatepoolError) -> None:
        """Marks leases as lost and tells their owners; a lease that is lost already keeps its first error."""
        with self._lock:
            lost = [lease for lease in leases if lease in self._live]
            self._live.difference_update(lost)
            self.lost += len(lost)
            for lease in lost:
                lease.error = error
        for lease in lost:
            lease.changed()
            tell(lease.on_lost, error, f"on_lost of session {lease.opened.ref.session_id}")

    def failed(self, lease: Lease | None, error: StatepoolError) -> StatepoolError:
        """Takes note of a failed call; the lease that it needed may be lost by it, or suspended.

        Returns:
            The error, to be raised.
        """
        if lease is None:
            return error
        is_gone = isinstance(error, UnavailableError) and not isinstance(error, OverloadedError)
        if lease.may_be_resumed and (is_gone or isinstance(error, IncarnationMismatchError)):
            self.suspend([lease])
        elif isinstance(error, LOSING_ERRORS):
            self.lose([lease], error)
        return error

    def expire(self, leases: Iterable[Lease]) -> None:
        """Marks leases as lost that ended here, whatever the server knows."""
        for lease in leases:
            seconds = lease.opened.ttl + lease.resume_within
            self.lose([lease], SessionExpiredError(f"no renewal was granted for {seconds:g} s"))

    def suspend(self, leases: Iterable[Lease]) -> None:
        """Doubts leases that may be resumed until a renewal is granted."""
        for lease in leases:
            lease.suspend()
        self.on_suspended()

    def granted(self, lease: Lease, asked_at: float, incarnation: int) -> None:
        """Notes that a server process has renewed a lease, which it may have taken over from another.

        Args:
            lease: The lease; one that was lost or given back meanwhile stays so.
            asked_at: When the renewal was sent.
            incarnation: The server process.
        """
        with self._lock:
            if lease not in self._live:
                return
            self.resumed += lease.opened.ref.incarnation != incarnation
            lease.opened.ref.incarnation = incarnation
            lease.renewed(asked_at)
        lease.changed()

    def saw_incarnation(self, incarnation: int) -> None:
        """Notes which server process answered; leases of another one are suspended, or lost.

        A late answer of a former process changes nothing.
        """
        if incarnation == self.incarnation:
            return  # the common case takes no lock
        with self._lock:
            if incarnation in self._past_incarnations:
                return
            self.restarts += self.incarnation != 0
            self._past_incarnations.add(self.incarnation)
            self.incarnation = incarnation
            others = [lease for lease in self._live if lease.opened.ref.incarnation != incarnation]
        self.suspend([lease for lease in others if lease.may_be_resumed])
        lost = [lease for lease in others if not lease.may_be_resumed]
        if lost:
            told = "another server process answers, and the session, opened without resume_within, does not go on"
            self.lose(lost, IncarnationMismatchError(told))
