"""A session's lease as its owner sees it: until when it lasts, and whether it is suspended or lost. No I/O."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, TypeVar

from statepool.clock import now
from statepool.errors import (
    DeadlineExceededError,
    IncarnationMismatchError,
    OwnerKeyInUseError,
    ResourceExhaustedError,
    SessionExpiredError,
    SessionFencedError,
    SessionNotFoundError,
    StatepoolError,
    UnavailableError,
)

if TYPE_CHECKING:
    from statepool.calls.sessions import Opened

LOSING_ERRORS = (SessionNotFoundError, SessionExpiredError, SessionFencedError, IncarnationMismatchError)
"""Errors after which no call of the session can ever succeed."""

PASSING_ERRORS = (UnavailableError, DeadlineExceededError, OwnerKeyInUseError, ResourceExhaustedError)
"""Errors after which a session may be opened in place of a lost one a little later."""

RENEWALS_PER_TTL = 3
"""A lease is renewed when a third of it has passed, so that it outlives two lost renewals."""

log = logging.getLogger("statepool")
"""Logger of the client."""

News = TypeVar("News")
SessionT = TypeVar("SessionT")


def tell(owner: Callable[[News], object] | None, news: News, name: str) -> None:
    """Calls an owner's callback, if there is one; what it raises is logged by the name and goes no further.

    So is an attempt to end the process, which would end the thread alone that keeps all sessions alive; but not the
    interrupt of who sits at the terminal.
    """
    if owner is None:
        return
    try:
        owner(news)
    except KeyboardInterrupt:
        raise
    except BaseException:
        log.exception("%s failed", name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms(Generic[SessionT]):
    """What a session was asked for, so that it can be asked for again; see `Client.create_session`."""

    ttl: float
    """Seconds that the lease lasts after its last renewal."""
    owner_key: str
    """Name under which it can be taken over; empty: none."""
    take_over: bool
    """Whether to take over a live session of the same owner key."""
    resume_within: float
    """Seconds after its end in which it may be resumed."""
    on_lost: Callable[[SessionT, StatepoolError], object] | None
    """Called once if it is lost."""
    on_recreated: Callable[[SessionT], object] | None
    """Called with the session that is opened in place of one that was lost; None: none is."""

    def __post_init__(self) -> None:
        """Refuses what would give a session up before its end."""
        if not self.resume_within >= 0:
            raise ValueError(f"resume_within: {self.resume_within} is no number of seconds from 0 on")

    def asks_for_another(self, error: StatepoolError) -> bool:
        """Tells whether a session that was lost is to be replaced: not if another owner has it."""
        return self.on_recreated is not None and not isinstance(error, SessionFencedError)

    @property
    def of_successor(self) -> Terms[SessionT]:
        """The same, for the session that is opened in place of one that was lost: a living owner keeps his."""
        return replace(self, take_over=False)


class Lease:
    """A session's lease; lost for good, once for all, with one error.

    A lease that may be resumed is *suspended* as long as nobody knows whether it still holds: its end has passed here,
    its server does not answer, or another server process answers in its place. Nothing but the question whether it
    holds is sent with it then. The next renewal that is granted takes it up again, at the server process that granted
    it.

    Attributes:
        opened: The session as the server answered it; the incarnation in its `ref` is that of the last renewal.
        resume_within: Seconds after its end in which it may be resumed; 0: it is never suspended, but lost at once.
        expires_at: When it ends unless renewed, by `statepool.clock`. It counts from when the last good renewal was
            *sent*, so it never ends later here than at the server.
        renew_at: When the next renewal is due.
        error: Why no call can succeed any more, or None.
        on_lost: Called once, when it is lost.
    """

    def __init__(self, opened: Opened, asked_at: float, resume_within: float = 0.0) -> None:
        """Begins a lease.

        Args:
            opened: The session as the server answered it.
            asked_at: When it was asked for, by `statepool.clock`.
            resume_within: Seconds after its end in which it may be resumed.
        """
        self.opened = opened
        self.resume_within = resume_within
        self.error: StatepoolError | None = None
        self.on_lost: Callable[[StatepoolError], object] | None = None
        self._listeners: dict[Callable[[], object], None] = {}  # threads come and go: each change of it is one step
        self.renewed(asked_at)

    @property
    def may_be_resumed(self) -> bool:
        """Whether its owner has asked for it."""
        return self.resume_within > 0

    @property
    def lost_at(self) -> float:
        """When it is lost unless renewed."""
        return self.expires_at + self.resume_within

    @property
    def is_suspended(self) -> bool:
        """Whether a renewal must be granted before anything else may be sent with it."""
        return self.may_be_resumed and self.error is None and (self._is_doubted or now() >= self.expires_at)

    def renewed(self, asked_at: float) -> None:
        """Notes that a renewal sent at a time was granted."""
        self._is_doubted = False
        self.expires_at = asked_at + self.opened.ttl
        self.asked(asked_at)

    def asked(self, at: float) -> None:
        """Notes that a renewal is sent."""
        self.renew_at = at + self.opened.ttl / RENEWALS_PER_TTL

    def suspend(self) -> None:
        """Doubts a lease that may be resumed: a renewal is due now."""
        self._is_doubted, self.renew_at = True, now()

    @contextmanager
    def watched(self, listener: Callable[[], object]) -> Iterator[None]:
        """Has somebody told, on any thread, whenever it was renewed, lost or given back."""
        self.listen(listener)
        try:
            yield
        finally:
            self.forget(listener)

    def listen(self, listener: Callable[[], object]) -> None:
        """Has somebody told, on any thread, whenever it was renewed, lost or given back, until `forget`."""
        self._listeners[listener] = None

    def forget(self, listener: Callable[[], object]) -> None:
        """Has somebody told no longer; a second time does nothing."""
        self._listeners.pop(listener, None)

    def changed(self) -> None:
        """Tells those who listen that it was renewed, lost or given back."""
        for listener in list(self._listeners):
            listener()


def suspended_error(lease: Lease) -> UnavailableError:
    """Makes the error of a caller who has waited for a suspended lease in vain."""
    return UnavailableError(f"session {lease.opened.ref.session_id} waits for a server that renews it")
