"""How often a call that finds no server, or an overloaded one, is sent again: not so often that it adds to an outage.

gRPC's own retry is not used: it can neither put the incarnation of a restarted server into the request, nor wait for a
session to be resumed, nor tell how often it has retried.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from statepool.backoff import Backoff
from statepool.errors import IncarnationMismatchError, StatepoolError, UnavailableError

MAX_ATTEMPTS = 5
"""Times that one call is sent."""
RETRIES_PER_CALL = 0.1
"""What each call adds to the budget: a server that refuses everything gets a tenth more than it would."""
RETRIES_PER_SECOND = 1.0
"""What time adds to the budget, so that a client that rarely calls may retry as well."""
MAX_SAVED_RETRIES = 10.0
"""Largest budget, in retries, which a client begins with."""


@dataclass(frozen=True, slots=True)
class ClientStats:
    """What has become of a client's calls and sessions so far."""

    calls: int
    """Unary calls, each counted once however often it was sent."""
    retries: int
    """Times that a call was sent again."""
    refused_retries: int
    """Calls that failed without another attempt, since the retry budget was spent."""
    restarts: int
    """Server processes that were seen to answer in place of another."""
    resumed_sessions: int
    """Sessions that were taken up again by a restarted server."""
    lost_sessions: int
    """Sessions that were lost."""


class RetryBudget:
    """A token bucket that every call of a client fills a little and every retry takes from; safe to use from threads.

    Attributes:
        calls: Calls so far.
        retries: Retries so far, those that need no budget included.
        refused: Retries that were refused.
    """

    def __init__(self, now: float) -> None:
        """Makes a full budget.

        Args:
            now: The time, in seconds by any clock that is used for the others.
        """
        self.calls = self.retries = self.refused = 0
        self._saved = MAX_SAVED_RETRIES
        self._filled_at = now
        self._lock = threading.Lock()

    def called(self) -> None:
        """Notes a new call."""
        with self._lock:
            self.calls += 1
            self._saved = min(MAX_SAVED_RETRIES, self._saved + RETRIES_PER_CALL)

    def retried(self) -> None:
        """Notes a retry that needs no budget."""
        with self._lock:
            self.retries += 1

    def take(self, now: float) -> bool:
        """Takes a retry out, if there is one."""
        with self._lock:
            grown = self._saved + (now - self._filled_at) * RETRIES_PER_SECOND
            self._saved, self._filled_at = min(MAX_SAVED_RETRIES, grown), now
            if self._saved < 1:
                self.refused += 1
                return False
            self._saved -= 1
            self.retries += 1
            return True


class Attempts:
    """The attempts of one call, and the deadline that they share.

    Attributes:
        deadline: When the call must have ended, by `time.monotonic`.
    """

    def __init__(self, budget: RetryBudget, seconds: float) -> None:
        """Begins a call.

        Args:
            budget: Retries that all calls of the client have.
            seconds: How long the call may take.
        """
        budget.called()
        self.deadline = time.monotonic() + seconds
        self._budget = budget
        self._made = 0
        self._backoff = Backoff()

    @property
    def is_repeated(self) -> bool:
        """Whether the attempt under way is not the first."""
        return self._made > 0

    @property
    def left(self) -> float:
        """Seconds to the deadline."""
        return self.deadline - time.monotonic()

    def pause_after(self, error: StatepoolError, *, is_resumed: bool) -> float | None:
        """Decides whether a call that failed is sent again.

        Args:
            error: Why it failed.
            is_resumed: Whether its session is suspended: the next attempt comes when the session is renewed, by a
                server that answers, and so needs no budget.

        Returns:
            Seconds to wait first, more than the server asked for, so that its clients do not come in step; None: the
            error is final.
        """
        self._made += 1
        is_retried = isinstance(error, UnavailableError) or (is_resumed and isinstance(error, IncarnationMismatchError))
        pause = self._backoff.broke() + (error.retry_after or 0.0)
        if not is_retried or self._made >= MAX_ATTEMPTS or pause >= self.left:
            return None
        if is_resumed:
            self._budget.retried()
        elif not self._budget.take(time.monotonic()):
            return None
        return pause
