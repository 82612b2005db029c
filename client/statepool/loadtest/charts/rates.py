"""The charts of a report that show amounts: throughput, errors, the pool's usage, the rates that a search has tried."""

from collections.abc import Sequence

import numpy as np

from statepool.loadtest.charts.chart import HALF, Chart
from statepool.loadtest.charts.latency import middles, time_scale
from statepool.loadtest.charts.scales import linear, logarithmic
from statepool.loadtest.slices import Slice
from statepool.loadtest.usage import UsageSample
from statepool.loadtest.verdicts import Probe

USAGE = ("held", "releasing", "evictable", "free")
"""Blocks of a pool, from below to above."""


def throughput(slices: Sequence[Slice], slice_seconds: float) -> Chart:
    """Draws operations per second, slice by slice."""
    rates = np.array([each.operations for each in slices]) / slice_seconds
    time, y = time_scale(slices, slice_seconds), linear(rates.max(), amount)
    chart = Chart("Operations per second over time", time, y, width=HALF)
    chart.line("rate", middles(slices, slice_seconds), rates)
    return chart


def errors(slices: Sequence[Slice], slice_seconds: float) -> Chart:
    """Draws failed operations, slice by slice."""
    counts = np.array([float(each.errors.total()) for each in slices])
    time, y = time_scale(slices, slice_seconds), linear(counts.max(), amount)
    chart = Chart("Failed operations over time", time, y, width=HALF)
    edges = np.repeat(np.arange(len(slices) + 1) * slice_seconds, 2)[1:-1]
    chart.stack(["bad"], edges, np.repeat(counts, 2)[None])
    return chart


def usage(samples: Sequence[UsageSample], slices: Sequence[Slice], slice_seconds: float) -> Chart:
    """Draws what the pool's blocks are used for, over time."""
    blocks = np.array([[float(getattr(sample, kind)) for sample in samples] for kind in USAGE])
    time, y = time_scale(slices, slice_seconds), linear(blocks.sum(0).max(), amount)
    chart = Chart("Blocks by state over time", time, y, width=HALF)
    chart.stack(USAGE, np.array([min(each.seconds, len(slices) * slice_seconds) for each in samples]), blocks)
    return chart


def probes(tried: Sequence[Probe]) -> Chart:
    """Draws what was served of each rate that was offered."""
    rates = np.array([probe.rate for probe in tried])
    scale = logarithmic(rates.min() * 0.9, rates.max() * 1.1, amount)
    chart = Chart("Served of what was offered", scale, scale)
    chart.line("ideal", np.sort(rates), np.sort(rates))
    for probe in tried:
        text = f"{amount(probe.rate)}/s offered, {amount(probe.served)}/s served"
        chart.point("good" if probe.holds else "bad", probe.rate, probe.served, text)
    return chart


def amount(value: float) -> str:
    """Writes a number for people: in thousands and millions, to three digits."""
    for size, name in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{name}"
    return f"{value:.3g}"
