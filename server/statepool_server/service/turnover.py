"""How fast blocks come back, so that whoever finds the pool exhausted is told when to ask again."""

import time

from statepool.errors import PoolExhaustedError, StatepoolError
from statepool_server.pool import Pool
from statepool_server.service.flow import Rate, hint

_SAMPLE_SECONDS = 0.05
"""Changes come with every engine step; the rate is brought up to date no more often than this."""


class Turnover:
    """Blocks that became free or evictable, per second."""

    def __init__(self, pool: Pool) -> None:
        self._blocks = pool.blocks
        self._rate = Rate()
        self._sampled_at = time.monotonic()
        self._sampled_count = self._blocks.released_count

    def blocks_changed(self) -> None:
        """Notes that blocks may have come back."""
        if time.monotonic() - self._sampled_at >= _SAMPLE_SECONDS:
            self._sample()

    def hint(self, blocks: int) -> float:
        """Tells in how many seconds so many blocks may have come back."""
        self._sample()
        return hint(self._rate.seconds_for(blocks))

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
