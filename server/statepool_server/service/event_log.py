"""The latest of what has happened, encoded: bounded in bytes, whoever may still want more."""

import time
from collections import deque
from collections.abc import Callable
from itertools import islice


class EventLog:
    """Batches of events by their numbers, which count from 1 without a gap; the oldest make room for the newest.

    Attributes:
        last: Number of the newest batch; 0: there was none.
        nbytes: Bytes that are kept.
    """

    def __init__(self, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Begins without a batch.

        Args:
            max_bytes: Bytes that are kept at most, but for the newest batch, which always is.
            clock: Tells the time, in seconds.
        """
        self._clock = clock
        self.last = self.nbytes = 0
        self._max_bytes = max_bytes
        self._batches: deque[bytes] = deque()
        self._times: deque[float] = deque()

    def append(self, batch: bytes) -> None:
        """Adds a batch."""
        self._batches.append(batch)
        self._times.append(self._clock())
        self.last += 1
        self.nbytes += len(batch)
        while self.nbytes > self._max_bytes and len(self._batches) > 1:
            self.nbytes -= len(self._batches.popleft())
            self._times.popleft()

    def reaches(self, number: int) -> bool:
        """Tells whether everything behind a batch is kept."""
        return self.last - len(self._batches) <= number <= self.last

    def behind(self, number: int, max_bytes: int) -> tuple[bytes, int]:
        """Joins what came behind a batch.

        Args:
            number: The batch; all behind it must be kept.
            max_bytes: Where to stop, but for the first batch.

        Returns:
            The batches, one after the other, and the number of the last of them.
        """
        taken: list[bytes] = []
        size = 0
        for batch in islice(self._batches, self._index(number), None):
            size += len(batch)
            if taken and size > max_bytes:
                break
            taken.append(batch)
        return b"".join(taken), number + len(taken)

    def age(self, number: int) -> float:
        """Tells for how many seconds there has been something behind a batch, as far as it is kept; 0: nothing is."""
        if number >= self.last:
            return 0.0
        return self._clock() - self._times[max(0, self._index(number))]

    def _index(self, number: int) -> int:
        """Tells the place of the first batch behind a batch."""
        return number - self.last + len(self._batches)
