"""The charts of a report that show latencies: percentile curves, over time, as a heat map."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from statepool.loadtest.charts.chart import HALF, Chart
from statepool.loadtest.charts.scales import Scale, Values, linear, logarithmic, percentiles
from statepool.loadtest.distribution import bucket_counts, bucket_values, quantiles
from statepool.loadtest.slices import LOWEST_NS, Slice
from statepool.units import format_seconds

POINTS = 240
"""Points of a percentile curve."""
ROWS = 48
COLUMNS = 150
"""Of a heat map, at most."""
SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
"""Lines of the latency over time."""


def percentile_curves(histograms: Mapping[str, NDArray[np.int64]]) -> Chart:
    """Draws latency by percentile, as HdrHistogram's plots do; a curve ends with the last percentile that is measured.

    Args:
        histograms: Values of each bucket by the class of the line, none of them empty.
    """
    most = 1 - 1 / max(2, *(int(counts.sum()) for counts in histograms.values()))
    curves = {kind: _curve(counts) for kind, counts in histograms.items()}
    y = _seconds_scale(np.concatenate([seconds for _, seconds in curves.values()]))
    chart = Chart("Latency by percentile", percentiles(most), y, height=340)
    for kind, (shares, seconds) in curves.items():
        chart.line(kind, shares, seconds)
    return chart


def latency_over_time(slices: Sequence[Slice], operation: str, slice_seconds: float) -> Chart:
    """Draws percentiles of an operation, slice by slice.

    Args:
        slices: What was measured; in one at least, the operation was.
        operation: Which one.
        slice_seconds: Length of a slice.
    """
    rows = np.full((len(SHARES), len(slices)), np.nan)
    for number, each in enumerate(slices):
        counts = bucket_counts(each.latencies(operation))
        if counts.any():
            rows[:, number] = quantiles(counts, np.array([*SHARES.values()])) / 1e9
    time, y = time_scale(slices, slice_seconds), _seconds_scale(rows)
    chart = Chart(f"Latency of {operation} over time", time, y, width=HALF)
    for kind, row in zip(SHARES, rows, strict=True):
        chart.line(kind, middles(slices, slice_seconds), row)
    return chart


def heat_map(slices: Sequence[Slice], slice_seconds: float) -> Chart:
    """Draws how many operations took how long when.

    Args:
        slices: What was measured; something at least was.
        slice_seconds: Length of a slice.
    """
    counts = np.stack([bucket_counts(each.latencies()) for each in slices])
    seen = bucket_values()[counts.any(axis=0)] / 1e9
    y = _seconds_scale(seen)
    edges = np.geomspace(max(seen.min() * 0.99, LOWEST_NS / 1e9), max(seen.max(), seen.min() * 2), ROWS + 1)
    rows = np.searchsorted(edges, bucket_values() / 1e9).clip(1, ROWS) - 1
    merged = -(-len(slices) // COLUMNS)
    columns = np.arange(len(slices)) // merged
    cells = np.zeros((ROWS, columns[-1] + 1), np.int64)
    sources, buckets = np.nonzero(counts)
    np.add.at(cells, (rows[buckets], columns[sources]), counts[sources, buckets])
    chart = Chart("Operations by latency over time", time_scale(slices, slice_seconds), y, height=340)
    ends = np.minimum(np.arange(columns[-1] + 2) * merged, len(slices)) * slice_seconds
    chart.cells(ends, edges, cells)
    return chart


def time_scale(slices: Sequence[Slice], slice_seconds: float) -> Scale:
    """Makes the axis of the time since the measurement began."""
    return linear(len(slices) * slice_seconds, lambda seconds: format_seconds(seconds) if seconds else "0")


def middles(slices: Sequence[Slice], slice_seconds: float) -> Values:
    """Gives the middle of every slice, in seconds."""
    middle: Values = (np.arange(len(slices), dtype=np.float64) + 0.5) * slice_seconds
    return middle


def _curve(counts: NDArray[np.int64]) -> tuple[Values, Values]:
    nines = np.linspace(0, np.log10(max(2, counts.sum())), POINTS)
    shares: Values = 1 - np.power(10.0, -nines, dtype=np.float64)
    return shares, quantiles(counts, np.append(shares[:-1], 1.0)) / 1e9


def _seconds_scale(seconds: Values) -> Scale:
    return logarithmic(float(np.nanmin(seconds)) * 0.9, float(np.nanmax(seconds)) * 1.1, format_seconds)
