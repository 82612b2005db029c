"""How fast blocks come back, so that whoever finds the pool exhausted is told when to ask again."""

import time

from statepool.errors import PoolExhaustedError, StatepoolError
from statepool_server.pool import Pool
from statepool_server.service.flow import LONGEST_HINT_SECONDS, Rate, hint

_SAMPLE_SECONDS = 0.05
"""Changes come with every engine step; the rate is brought up to date no more often than this."""


class Turnover:
    """Blocks that became free or evictable, per second.

    Whoever is refused is told a time of its own, after those who were told before: if all came back at once, they would
    only find the blocks taken again by the first.
    """

    def __init__(self, pool: Pool) -> None:
        self._blocks = pool.blocks
        self._rate = Rate()
        self._sampled_at = time.monotonic()
        self._sampled_count = self._blocks.released_count
        self._promised_until = 0.0

    def blocks_changed(self) -> None:
        """Notes that blocks may have come back."""
        if time.monotonic() - self._sampled_at >= _SAMPLE_SECONDS:
            self._sample()

    def hint(self, blocks: int) -> float:
        """Tells in how many seconds so many blocks may have come back, after those that others were told of."""
        self._sample()
        now, seconds = self._sampled_at, self._rate.seconds_for(blocks)
        self._promised_until = min(max(now, self._promised_until) + seconds, now + LONGEST_HINT_SECONDS)
        return hint(self._promised_until - now)

    def complete(self, error: StatepoolError) -> StatepoolError:
        """Puts the hint into a refusal for want of blocks, unless the pool has not so many at all.

        Args:
            error: Any error; others stay as they are.
        """
        if isinstance(error, PoolExhaustedError) and error.retry_after is not None:
            wanted, free, evictable = (int(error.metadata[key]) for key in ("requested", "free", "evictable"))
            error.retry_after = self.hint(max(1, wanted - free - evictable))
        return error

    def _sample(self) -> None:
        now, count = time.monotonic(), self._blocks.released_count
        self._rate.add(count - self._sampled_count, now - self._sampled_at)
        self._sampled_at, self._sampled_count = now, count
