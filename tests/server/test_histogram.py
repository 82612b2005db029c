"""Guarantee: a histogram counts every value once, at the first bound that it does not exceed."""

from hypothesis import given
from hypothesis import strategies as st

from statepool_server.histogram import Histogram


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 9.0])))
def test_counts(values: list[float]) -> None:
    """Bounds belong to what is below them; what is above the last is counted by itself."""
    histogram = Histogram([1.0, 2.0])

    for value in values:
        histogram.observe(value)

    below = [sum(value <= bound for value in values) for bound in (1.0, 2.0, float("inf"))]
    assert histogram.counts == [below[0], below[1] - below[0], below[2] - below[1]]
    assert histogram.total == sum(values)
