"""What happened in one slice of a load test's time, from which everything that is told about the test is added up."""

import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hdrh.codec import HdrCookieException, HdrHistogramSettingsException, HdrLengthException
from hdrh.histogram import HdrHistogram

LOWEST_NS = 1_000
HIGHEST_NS = 120 * 10**9
DIGITS = 3
TTFT = "first_token"
"""Not an operation: the time from a request's arrival to its first token, many steps later."""
ALL = "all"
"""Names the operations of all kinds together."""


def new_histogram() -> HdrHistogram:
    """Makes a histogram of nanoseconds, 1 µs to 2 min, to three digits."""
    return HdrHistogram(LOWEST_NS, HIGHEST_NS, DIGITS)


@dataclass
class Slice:
    """One slice of time, or several added up."""

    histograms: dict[str, HdrHistogram] = field(default_factory=dict)
    """Latencies in nanoseconds, by operation."""
    errors: Counter[str] = field(default_factory=Counter)
    """Failed operations, by operation and error class."""
    examples: dict[str, str] = field(default_factory=dict)
    """What the first of them said, by the same."""
    counts: Counter[str] = field(default_factory=Counter)
    """What happened to requests, tokens and bytes."""

    @classmethod
    def sum(cls, slices: Iterable["Slice"]) -> "Slice":
        """Adds slices up."""
        total = cls()
        for each in slices:
            total.add(each)
        return total

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Slice":
        """Reads what `to_json` has made.

        Raises:
            ValueError: A histogram is damaged, or not one of these.
        """
        histograms = {name: _decode(encoded) for name, encoded in values["histograms"].items()}
        return cls(histograms, Counter(values["errors"]), values.get("examples", {}), Counter(values["counts"]))

    def add(self, other: "Slice") -> None:
        """Adds another slice."""
        for name, histogram in other.histograms.items():
            self.histogram(name).add(histogram)
        self.errors.update(other.errors)
        self.examples = other.examples | self.examples
        self.counts.update(other.counts)

    def histogram(self, operation: str) -> HdrHistogram:
        """Gives the histogram of an operation, an empty one for the first."""
        found = self.histograms.get(operation)
        if found is None:
            found = self.histograms[operation] = new_histogram()
        return found

    def latencies(self, operation: str = ALL) -> HdrHistogram | None:
        """Gives the latencies of an operation, or of all of them; None: there was none."""
        if operation != ALL:
            return self.histograms.get(operation)
        merged = new_histogram()
        for name, histogram in self.histograms.items():
            if name != TTFT:
                merged.add(histogram)
        return merged if merged.get_total_count() else None

    @property
    def operations(self) -> int:
        """Operations that succeeded."""
        return sum(int(each.get_total_count()) for name, each in self.histograms.items() if name != TTFT)

    def to_json(self) -> dict[str, Any]:
        """Gives everything in a form that `json` writes; histograms as base64 of HdrHistogram's V2 encoding."""
        return {
            "histograms": {name: histogram.encode().decode() for name, histogram in self.histograms.items()},
            "errors": dict(self.errors),
            "examples": self.examples,
            "counts": dict(self.counts),
        }


def _decode(encoded: str) -> HdrHistogram:
    try:
        histogram = HdrHistogram.decode(encoded)
    except (HdrCookieException, HdrHistogramSettingsException, HdrLengthException, zlib.error) as error:
        raise ValueError(f"no histogram: {error}") from error
    if histogram.counts_len != new_histogram().counts_len:
        raise ValueError("a histogram of another range")
    return histogram
