"""What a client process measures: latencies in HDR histograms, errors, bytes, verifications."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hdrh.histogram import HdrHistogram

from statepool.errors import StatepoolError

LOWEST_NS = 1_000
HIGHEST_NS = 120 * 10**9
DIGITS = 3
MAX_MISMATCHES = 20
"""Failed comparisons that a process tells about; the others are only counted."""
TTFT = "first_token"
"""Not an operation: the time from a request's arrival to its first token, many steps later."""


def new_histogram() -> HdrHistogram:
    """Makes a histogram of nanoseconds, 1 µs to 2 min, to three digits."""
    return HdrHistogram(LOWEST_NS, HIGHEST_NS, DIGITS)


class Recorder:
    """Counts of one process; nothing is recorded before `start`.

    Attributes:
        operations: Operations recorded.
        copied_bytes: Bytes that copies wrote, on all ranks.
        verified: Comparisons of bytes or answers with what they had to be.
        mismatch_count: Comparisons that failed.
        mismatches: What the first `MAX_MISMATCHES` of them were about.
    """

    def __init__(self) -> None:
        self._histograms: dict[str, HdrHistogram] = {}
        self._errors: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._recording = False
        self.operations = 0
        self.copied_bytes = 0
        self.verified = 0
        self.mismatch_count = 0
        self.mismatches: list[str] = []

    def start(self) -> None:
        """Ends the warm-up."""
        self._recording = True

    def latency(self, operation: str, nanoseconds: int) -> None:
        """Records one operation that succeeded."""
        if self._recording:
            self.operations += operation != TTFT
            histogram = self._histograms.get(operation)
            if histogram is None:
                histogram = self._histograms[operation] = new_histogram()
            histogram.record_value(min(max(nanoseconds, LOWEST_NS), HIGHEST_NS))

    @contextmanager
    def timed(self, operation: str, due_ns: int | None = None) -> Iterator[None]:
        """Records what the block takes, from when it was due (None: now), or the `StatepoolError` that it raises."""
        start_ns = time.perf_counter_ns() if due_ns is None else due_ns
        try:
            yield
        except StatepoolError as error:
            self.error(operation, error)
            raise
        self.latency(operation, time.perf_counter_ns() - start_ns)

    def error(self, operation: str, error: Exception) -> None:
        """Records one operation that failed; during the warm-up too, since it is news at any time."""
        self._errors[f"{operation}: {type(error).__name__}"] += 1

    def count(self, what: str, number: int = 1) -> None:
        """Adds to a count."""
        if self._recording:
            self._counts[what] += number

    def copied(self, nbytes: int) -> None:
        """Records the bytes of a copy."""
        if self._recording:
            self.copied_bytes += nbytes

    def verify(self, what: str, matches: bool) -> None:
        """Records a comparison."""
        self.verified += 1
        if not matches:
            self.mismatch_count += 1
            if self.mismatch_count <= MAX_MISMATCHES:
                self.mismatches.append(what)

    @property
    def errors(self) -> int:
        """Operations that failed."""
        return self._errors.total()

    def to_json(self) -> dict[str, Any]:
        """Gives everything in a form that `json` writes."""
        return {
            "histograms": {name: histogram.encode().decode() for name, histogram in self._histograms.items()},
            "errors": dict(self._errors),
            "counts": dict(self._counts),
            "copied_bytes": self.copied_bytes,
            "verified": self.verified,
            "mismatch_count": self.mismatch_count,
            "mismatches": self.mismatches,
        }
