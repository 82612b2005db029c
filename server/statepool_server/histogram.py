"""Histograms that cost the hot path a search in a short list and two additions."""

from bisect import bisect_left
from collections.abc import Sequence

CALL_SECONDS = (50e-6, 1e-4, 2e-4, 3e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Bounds for calls, steps and memory work: close where most of them are, a decade beyond any deadline that is usual."""


class Histogram:
    """Counts values by the first bound that they do not exceed; lives on one thread.

    Attributes:
        bounds: Upper bounds, ascending.
        counts: Values per bound, and those above the last, ``[bounds + 1]``.
        total: Sum of all values.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float] = CALL_SECONDS) -> None:
        """Begins empty.

        Args:
            bounds: Upper bounds, ascending.
        """
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Counts a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value
