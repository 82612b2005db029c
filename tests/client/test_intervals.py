"""Guarantee: rates and quantiles between two looks are those of Prometheus, also over a restart of the server."""

import pytest

from statepool import Metrics, MetricSample
from statepool.intervals import Interval


def look(incarnation: int, buckets: dict[str, float], **totals: float) -> Metrics:
    """Makes metrics: a histogram ``h`` with cumulative buckets, and counters."""
    samples = [MetricSample("h_bucket", {"le": bound, "kind": "a"}, count) for bound, count in buckets.items()]
    samples += [MetricSample(name, {"kind": "a"}, value) for name, value in totals.items()]
    return Metrics(incarnation, tuple(samples))


BEFORE = look(1, {"1": 5, "2": 5, "+Inf": 5}, hits=10, tokens=100)
AFTER = look(1, {"1": 15, "2": 25, "+Inf": 25}, hits=20, tokens=140)


def test_rates() -> None:
    """What has grown counts, not what there was."""
    seen = Interval(BEFORE, AFTER, 2.0)

    assert seen.rate("hits") == 5.0
    assert seen.growth_by("hits", "kind") == {"a": 10.0}
    assert seen.growth("hits", kind="b") == 0.0
    assert seen.ratio("hits", "tokens") == 0.25


def test_restart() -> None:
    """The counters of another process begin at 0."""
    seen = Interval(BEFORE, look(2, {"1": 1, "2": 1, "+Inf": 1}, hits=7), 1.0)

    assert seen.rate("hits") == 7.0
    assert seen.quantile(0.5, "h") == pytest.approx(0.5)


@pytest.mark.parametrize(("share", "quantile"), [(0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (0.75, 1.5), (1.0, 2.0)])
def test_quantiles(share: float, quantile: float) -> None:
    """Values are spread evenly within their bucket: ten from 0 to 1, ten from 1 to 2."""
    assert Interval(BEFORE, AFTER, 1.0).quantile(share, "h", kind="a") == pytest.approx(quantile)


def test_nothing() -> None:
    """Without values there is neither a quantile nor a share."""
    seen = Interval(AFTER, AFTER, 1.0)

    assert seen.quantile(0.5, "h") is None
    assert seen.quantile(0.5, "other") is None
    assert seen.ratio("hits", "tokens") is None


def test_above_the_last_bound() -> None:
    """Of values above the highest bound no more is known."""
    seen = Interval(look(1, {}), look(1, {"1": 0, "+Inf": 4}), 1.0)

    assert seen.quantile(0.9, "h") == 1.0
