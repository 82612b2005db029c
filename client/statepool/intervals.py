"""What has happened between two looks at a server's metrics: rates, shares and quantiles."""

import math
from dataclasses import dataclass

from statepool.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Interval:
    """Two looks at one server; where it was restarted in between, everything since its start counts."""

    before: Metrics
    """The first look."""
    after: Metrics
    """The second."""
    seconds: float
    """Time between them."""

    def growth(self, name: str, **labels: str) -> float:
        """Tells by how much a counter has grown."""
        return sum(self.growth_by(name, "", **labels).values())

    def growth_by(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """Tells by how much a counter has grown, apart for each value of a label."""
        is_same = self.before.incarnation == self.after.incarnation
        before = self.before.by(name, label, **labels) if is_same else {}
        return {key: value - before.get(key, 0.0) for key, value in self.after.by(name, label, **labels).items()}

    def rate(self, name: str, **labels: str) -> float:
        """Tells by how much a counter has grown per second."""
        return self.growth(name, **labels) / self.seconds

    def ratio(self, numerator: str, denominator: str) -> float | None:
        """Divides the growths of two counters; None: the second has not grown."""
        whole = self.growth(denominator)
        return self.growth(numerator) / whole if whole else None

    def quantile(self, share: float, histogram: str, **labels: str) -> float | None:
        """Estimates a quantile of the values that were counted meanwhile, as Prometheus does.

        Args:
            share: Share of the values that are not above it, from 0 to 1.
            histogram: Name of the histogram, without ``_bucket``.
            labels: Labels of it.

        Returns:
            The quantile, interpolated within its bucket; the highest bound where it is above that; None: no values.
        """
        growth = self.growth_by(f"{histogram}_bucket", "le", **labels)
        buckets = sorted((float(bound), count) for bound, count in growth.items())
        if not buckets or not buckets[-1][1]:
            return None
        rank = share * buckets[-1][1]
        lower, below = 0.0, 0.0
        for bound, count in buckets:
            if count >= rank and count > below:
                return lower if math.isinf(bound) else lower + (bound - lower) * (rank - below) / (count - below)
            lower, below = bound, count
        return lower
