"""Work under way: bounded in number, and measured by how fast it ends, so that a refusal can tell when to come back."""

import math
import time

from statepool.errors import OverloadedError

WINDOW_SECONDS = 2.0
"""What a rate remembers: older events count for less than a third of one that has just been."""

SHORTEST_HINT_SECONDS = 0.01
LONGEST_HINT_SECONDS = 2.0
"""Bounds of every hint: a rate is a guess, and below the retry of a client there is nothing to gain."""


RESERVE = 2.0
"""How many times what the work ahead takes a caller must have left. A queue that is filled to the very deadline of its
callers is served when each of them has just gone: then all is done, and nothing in time."""


class Rate:
    """How many events a second there have been lately: an exponentially weighted mean."""

    def __init__(self) -> None:
        self._count = self._seconds = 0.0

    def add(self, count: float, seconds: float) -> None:
        """Takes in a number of events and the time in which they came."""
        kept = math.exp(-seconds / WINDOW_SECONDS)
        self._count = self._count * kept + count
        self._seconds = self._seconds * kept + seconds

    def seconds_for(self, count: float) -> float:
        """Tells how long so many more events take; infinity while there have been none."""
        return count * self._seconds / self._count if self._count else math.inf


def hint(seconds: float) -> float:
    """Makes a hint of a time that something takes: within bounds, in seconds."""
    return min(LONGEST_HINT_SECONDS, max(SHORTEST_HINT_SECONDS, seconds))


class Flow:
    """Work that begins and ends.

    Attributes:
        under_way: Pieces of work that have begun and not ended.
    """

    def __init__(self, what: str) -> None:
        """Begins without work.

        Args:
            what: What a piece of work is, in the plural.
        """
        self.under_way = 0
        self._what = what
        self._rate = Rate()
        self._measured_at = 0.0

    @property
    def seconds_ahead(self) -> float:
        """How long it takes until all that is under way has ended; infinity while nothing has ended yet."""
        return self._rate.seconds_for(self.under_way)

    def check(self, limit: int, seconds: float | None = None) -> None:
        """Refuses more work.

        Args:
            limit: How many pieces may be under way.
            seconds: How long whoever asks can wait for it; None: as long as it takes.

        Raises:
            OverloadedError: As many are under way, or what is under way takes longer; with a hint when it will be done.
        """
        if self.under_way >= limit:
            raise OverloadedError(f"{limit} {self._what} are under way already", retry_after=hint(self.seconds_ahead))
        if seconds is not None and self.under_way and seconds < RESERVE * self.seconds_ahead < math.inf:
            raise OverloadedError(
                f"{self.under_way} {self._what} are under way, and {max(0.0, seconds):.3g} s are left",
                retry_after=hint(RESERVE * self.seconds_ahead),
            )

    def begin(self) -> None:
        """Notes that a piece has begun."""
        if not self.under_way:
            self._measured_at = time.monotonic()  # the time in which nothing was to do says nothing about speed
        self.under_way += 1

    def end(self) -> None:
        """Notes that a piece has ended."""
        now = time.monotonic()
        self._rate.add(1, now - self._measured_at)
        self._measured_at = now
        self.under_way -= 1
