"""Two load tests side by side: ratios, and whether they are more than the noise of the runs.

Each run is resampled from its slices, with replacement, and the measures are taken anew of every sample; the middle
95 % of the ratios make the interval. It tells how much a run varies from second to second. What differs between runs of
the same program minutes apart, such as the other load of a shared machine, is not in it.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from statepool.loadtest.distribution import bucket_counts, bucket_values
from statepool.loadtest.facts import MUST_AGREE, configuration
from statepool.loadtest.report import PERCENTILES, Report
from statepool.loadtest.slices import ALL, Slice
from statepool.loadtest.verdicts import Verdict

Values: TypeAlias = NDArray[np.float64]

SAMPLES = 1000
FEWEST_SLICES = 5
FEWEST_BEYOND = 5
"""Values beyond a percentile, below which nothing is said about it."""
THROUGHPUT = "throughput"

_BOUND = re.compile(r"(?:([a-z_]+)\.)?(throughput|p50|p90|p99|p99\.9)([<>])([0-9]+(?:\.[0-9]+)?)x")


@dataclass(frozen=True, slots=True)
class Ratio:
    """One measure of one operation in both runs."""

    operation: str
    measure: str
    """``throughput`` in operations per second, or a percentile such as ``p99`` in seconds."""
    before: float
    after: float
    interval: tuple[float, float] | None
    """Of the ratio, 95 %; None: there are too few slices or values to tell."""

    @property
    def ratio(self) -> float:
        """The second run's measure by the first one's."""
        return self.after / self.before

    @property
    def judgement(self) -> str:
        """Says ``better``, ``worse``, ``noise``, or that there is too little to tell."""
        if self.interval is None:
            return "too few"
        low, high = self.interval
        if low <= 1.0 <= high:
            return "noise"
        return "better" if (low > 1.0) == (self.measure == THROUGHPUT) else "worse"


@dataclass(frozen=True, slots=True)
class RatioBound:
    """What must not have become of a measure."""

    text: str
    """As it was written."""
    operation: str
    measure: str
    is_upper: bool
    """Whether more than the bound is bad, or less."""
    bound: float

    @classmethod
    def parse(cls, text: str) -> "RatioBound":
        """Reads a bound such as ``p99>1.1x`` or ``step_quiet.throughput<0.9x``.

        Raises:
            ValueError: Another form.
        """
        match = _BOUND.fullmatch("".join(text.split()))
        if match is None:
            raise ValueError(f"fail-if {text!r}: must look like p99>1.1x, step_quiet.p50>1.05x or throughput<0.9x")
        return cls(text, match[1] or ALL, match[2], match[3] == ">", float(match[4]))

    def judge(self, ratios: Sequence[Ratio]) -> Verdict:
        """Judges ratios: what is beyond the bound, and no noise, must not be; nor must what cannot be told."""
        found = next(
            (each for each in ratios if (each.operation, each.measure) == (self.operation, self.measure)), None
        )
        text = f"not {self.text}"
        if found is None or found.interval is None:
            missing = "no such operation in both runs" if found is None else "too few slices or values to tell"
            return Verdict(text, missing, holds=False)
        low, high = found.interval
        is_beyond = found.ratio > self.bound if self.is_upper else found.ratio < self.bound
        is_noise = low <= 1.0 if self.is_upper else high >= 1.0
        return Verdict(text, f"{found.ratio:.3f}x, {low:.3f} to {high:.3f}", holds=is_noise or not is_beyond)


def differences(before: Report, after: Report) -> list[str]:
    """Lists how two runs differ in what was asked and what they ran on; where they do, a ratio says nothing.

    Versions may differ: they are what is compared.
    """
    return [
        f"{subject} {name}: {old[name]} → {new[name]}"
        for subject, old, new in _subjects(before, after)
        for name in old
        if old[name] != new[name]
    ]


def compare(before: Report, after: Report) -> list[Ratio]:
    """Compares what was measured in both runs, operation by operation."""
    names = sorted(before.total().histograms.keys() & after.total().histograms.keys())
    return [ratio for name in [*names, ALL] for ratio in _ratios(name, _Run(before, name, 0), _Run(after, name, 1))]


class _Run:
    """One operation in one run, and in samples of it.

    Attributes:
        slices: Slices of the run.
        count: Operations.
    """

    def __init__(self, report: Report, operation: str, place: int) -> None:
        counts = np.stack([bucket_counts(each.latencies(operation)) for each in report.slices or [Slice()]])
        used = np.flatnonzero(counts.any(axis=0))
        self.slices, self.count, self._seconds = len(counts), int(counts.sum()), report.options.duration
        random = np.random.default_rng(place)  # samples of the same slices in both runs would vary together
        weights = random.multinomial(self.slices, np.full(self.slices, 1 / self.slices), SAMPLES)
        weights = np.concatenate([np.ones((1, self.slices)), weights])  # the run itself comes first
        self._values = bucket_values()[used] / 1e9
        self._cumulative = (weights @ counts[:, used].astype(np.float64)).cumsum(axis=1)

    def throughput(self) -> Values:
        """Gives operations per second: of the run, and of each sample."""
        rates: Values = self._cumulative[:, -1] / self._seconds
        return rates

    def percentile(self, percentile: float) -> Values:
        """Gives a percentile in seconds: of the run, and of each sample."""
        ranks = np.maximum(1, np.ceil(self._cumulative[:, -1] * percentile / 100 - 1e-9))
        found: Values = self._values[(self._cumulative >= ranks[:, None]).argmax(axis=1)]
        return found


def _ratios(operation: str, before: _Run, after: _Run) -> Iterator[Ratio]:
    if not before.count or not after.count:
        return
    has_slices = min(before.slices, after.slices) >= FEWEST_SLICES
    yield _ratio(operation, THROUGHPUT, before.throughput(), after.throughput(), is_enough=has_slices)
    for percentile in PERCENTILES:
        beyond = min(before.count, after.count) * (1 - percentile / 100)
        samples = before.percentile(percentile), after.percentile(percentile)
        yield _ratio(operation, f"p{percentile:g}", *samples, is_enough=has_slices and beyond >= FEWEST_BEYOND)


def _ratio(operation: str, measure: str, before: Values, after: Values, *, is_enough: bool) -> Ratio:
    interval = None
    if is_enough and before[1:].all():
        low, high = np.percentile(after[1:] / before[1:], [2.5, 97.5])
        interval = float(low), float(high)
    return Ratio(operation, measure, float(before[0]), float(after[0]), interval)


def _subjects(before: Report, after: Report) -> Iterator[tuple[str, dict[str, object], dict[str, object]]]:
    pairs = [("configuration", configuration(before.options), configuration(after.options))]
    pairs += [(subject, before.facts.get(subject, {}), after.facts.get(subject, {})) for subject in MUST_AGREE]
    for subject, old, new in pairs:
        names = dict.fromkeys([*old, *new])
        yield subject, {name: old.get(name) for name in names}, {name: new.get(name) for name in names}
