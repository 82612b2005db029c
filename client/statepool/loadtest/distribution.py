"""Histograms as numpy columns: what curves, heat maps and resampling are computed from."""

from functools import cache

import numpy as np
from hdrh.histogram import HdrHistogram
from numpy.typing import NDArray

from statepool.loadtest.slices import new_histogram


@cache
def bucket_values() -> NDArray[np.int64]:
    """Gives the highest latency of each bucket of a histogram, in nanoseconds."""
    histogram = new_histogram()
    lowest = (histogram.get_value_from_index(index) for index in range(histogram.counts_len))
    return np.fromiter((histogram.get_highest_equivalent_value(value) for value in lowest), np.int64)


def bucket_counts(histogram: HdrHistogram | None) -> NDArray[np.int64]:
    """Gives the values counted in each bucket; None is an empty histogram."""
    if histogram is None:
        return np.zeros(len(bucket_values()), np.int64)
    return np.ctypeslib.as_array(histogram.encoder.payload.counts).astype(np.int64)


def quantiles(counts: NDArray[np.int64], shares: NDArray[np.float64]) -> NDArray[np.int64]:
    """Finds the latencies that given shares of the values do not exceed.

    Args:
        counts: Values of each bucket; not all zero.
        shares: Shares, 0 to 1.

    Returns:
        Nanoseconds, one per share.
    """
    cumulative = counts.cumsum()
    ranks = np.maximum(1, np.ceil(shares * cumulative[-1] - 1e-9))
    found: NDArray[np.int64] = bucket_values()[np.searchsorted(cumulative, ranks)]
    return found
