"""Leases as their client sees them: until when each lasts, and whether it is lost. No I/O; safe to use from threads."""

from __future__ import annotations

import copy
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

from statepool.errors import (
    IncarnationMismatchError,
    SessionExpiredError,
    SessionFencedError,
    SessionNotFoundError,
    StatepoolError,
)

if TYPE_CHECKING:
    from statepool.calls.sessions import Opened

LOSING_ERRORS = (SessionNotFoundError, SessionExpiredError, SessionFencedError, IncarnationMismatchError)
"""Errors after which no call of the session can ever succeed."""

RENEWALS_PER_TTL = 3
"""A lease is renewed when a third of it has passed, so that it outlives two lost renewals."""

log = logging.getLogger("statepool")
"""Logger of the client."""

News = TypeVar("News")


def tell(owner: Callable[[News], object] | None, news: News, name: str) -> None:
    """Calls an owner's callback, if there is one; what it raises is logged by the name and goes no further."""
    if owner is None:
        return
    try:
        owner(news)
    except Exception:
        log.exception("%s failed", name)


class Lease:
    """A session's lease; lost for good, once for all, with one error.

    Attributes:
        opened: The session as the server answered it.
        expires_at: When it ends unless renewed, by `time.monotonic`. It counts from when the last good renewal was
            *sent*, so it never ends later here than at the server.
        renew_at: When the next renewal is due.
        error: Why no call can succeed any more, or None.
        on_lost: Called once, when it is lost.
    """

    def __init__(self, opened: Opened, asked_at: float) -> None:
        """Begins a lease.

        Args:
            opened: The session as the server answered it.
            asked_at: When it was asked for, by `time.monotonic`.
        """
        self.opened = opened
        self.error: StatepoolError | None = None
        self.on_lost: Callable[[StatepoolError], object] | None = None
        self.renewed(asked_at)

    def renewed(self, asked_at: float) -> None:
        """Notes that a renewal sent at a time was granted."""
        self.expires_at = asked_at + self.opened.ttl
        self.asked(asked_at)

    def asked(self, now: float) -> None:
        """Notes that a renewal is sent."""
        self.renew_at = now + self.opened.ttl / RENEWALS_PER_TTL

    def notify(self) -> None:
        """Tells the owner that the lease is lost."""
        if self.error is not None:
            tell(self.on_lost, self.error, f"on_lost of session {self.opened.ref.session_id}")


class Leases:
    """The leases of one client, and the server process that granted them.

    Attributes:
        incarnation: The server process that answered last; 0 before the first answer.
    """

    def __init__(self) -> None:
        self.incarnation = 0
        self._lock = threading.Lock()
        self._live: set[Lease] = set()
        self._past_incarnations: set[int] = set()
        self._pid = os.getpid()

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
            return True

    def check(self, lease: Lease | None) -> None:
        """Proves that a call may be made.

        Args:
            lease: The lease that it needs, if any.

        Raises:
            StatepoolError: The error with which the lease was lost.
            RuntimeError: This process was forked from the one that made the client: it has neither gRPC's threads nor a
                right to its parent's sessions.
        """
        if self.is_foreign():
            raise RuntimeError(f"the client belongs to process {self._pid}; make a new one after a fork")
        if lease is None:
            return
        if lease.error is None and time.monotonic() >= lease.expires_at:
            self.expire([lease])
        if lease.error is not None:
            raise copy.copy(lease.error)

    def is_foreign(self) -> bool:
        """Tells whether this process was forked from the one that made the client."""
        return os.getpid() != self._pid

    def lose(self, leases: Iterable[Lease], error: StatepoolError) -> None:
        """Marks leases as lost and tells their owners; a lease that is lost already keeps its first error."""
        with self._lock:
            lost = [lease for lease in leases if lease in self._live]
            self._live.difference_update(lost)
            for lease in lost:
                lease.error = error
        for lease in lost:
            lease.notify()

    def failed(self, lease: Lease | None, error: StatepoolError) -> StatepoolError:
        """Takes note of a failed call; the lease that it needed may be lost by it.

        Returns:
            The error, to be raised.
        """
        if lease is not None and isinstance(error, LOSING_ERRORS):
            self.lose([lease], error)
        return error

    def expire(self, leases: Iterable[Lease]) -> None:
        """Marks leases as lost that ended here, whatever the server knows."""
        for lease in leases:
            self.lose([lease], SessionExpiredError(f"no renewal was granted for {lease.opened.ttl:g} s"))

    def saw_incarnation(self, incarnation: int) -> None:
        """Notes which server process answered; leases of another one are lost.

        A late answer of a former process changes nothing.
        """
        if incarnation == self.incarnation:
            return  # the common case takes no lock
        with self._lock:
            if incarnation in self._past_incarnations:
                return
            self._past_incarnations.add(self.incarnation)
            self.incarnation = incarnation
            others = [lease for lease in self._live if lease.opened.ref.incarnation != incarnation]
        if others:
            self.lose(others, IncarnationMismatchError("another server process answers: every session and ref is gone"))
