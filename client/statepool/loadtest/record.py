"""What a client process measures, slice by slice: latencies in HDR histograms, errors, counts, verifications."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from statepool.errors import StatepoolError
from statepool.loadtest.slices import HIGHEST_NS, LOWEST_NS, TTFT, Slice

MAX_MISMATCHES = 20
"""Failed comparisons that a process tells about; the others are only counted."""

MOST_CHARS = 300
"""Of what an error says that is kept as an example."""


class Recorder:
    """What one process has seen; nothing but errors and comparisons is recorded before `start`.

    Attributes:
        operations: Operations recorded.
        errors: Operations that failed.
        copied_bytes: Bytes that copies wrote, on all ranks.
        verified: Comparisons of bytes or answers with what they had to be.
        mismatch_count: Comparisons that failed.
        mismatches: What the first `MAX_MISMATCHES` of them were about.
    """

    def __init__(
        self, slices: int = 1, slice_seconds: float = 1.0, now_ns: Callable[[], int] = time.perf_counter_ns
    ) -> None:
        """Builds a recorder.

        Args:
            slices: Slices of the time that is measured.
            slice_seconds: Length of each; what ends after the last one belongs to it.
            now_ns: Tells the time in nanoseconds.
        """
        self._now_ns = now_ns
        self._num_slices = slices
        self._slice_ns = round(slice_seconds * 1e9)
        self._slices = [Slice()]
        self._packed: list[dict[str, Any]] = []
        self._started = (0, 0.0)
        self._ends_ns: float = float("inf")
        self._recording = False
        self.operations = 0
        self.errors = 0
        self.copied_bytes = 0
        self.verified = 0
        self.mismatch_count = 0
        self.mismatches: list[str] = []

    def start(self) -> None:
        """Ends the warm-up."""
        now_ns = self._now_ns()
        self._recording = True
        self._started = now_ns, time.process_time()
        self._ends_ns = now_ns + self._slice_ns

    def latency(self, operation: str, nanoseconds: int) -> None:
        """Records one operation that succeeded."""
        if self._recording:
            self.operations += operation != TTFT
            self._now().histogram(operation).record_value(min(max(nanoseconds, LOWEST_NS), HIGHEST_NS))

    @contextmanager
    def timed(self, operation: str, due_ns: int | None = None) -> Iterator[None]:
        """Records what the block takes, from when it was due (None: now), or the `StatepoolError` that it raises."""
        start_ns = self._now_ns() if due_ns is None else due_ns
        try:
            yield
        except StatepoolError as error:
            self.error(operation, error)
            raise
        self.latency(operation, self._now_ns() - start_ns)

    def error(self, operation: str, error: Exception) -> None:
        """Records one operation that failed; one of the warm-up, which is news too, belongs to the first slice."""
        self.errors += 1
        what, now = f"{operation}: {type(error).__name__}", self._now()
        now.errors[what] += 1
        now.examples.setdefault(what, str(error)[:MOST_CHARS])

    def count(self, what: str, number: int = 1) -> None:
        """Adds to a count."""
        if self._recording:
            self._now().counts[what] += number

    def copied(self, nbytes: int) -> None:
        """Records the bytes of a copy."""
        if self._recording:
            self.copied_bytes += nbytes
            self.count("copied_bytes", nbytes)

    def verify(self, what: str, matches: bool) -> None:
        """Records a comparison."""
        self.verified += 1
        if not matches:
            self.mismatch_count += 1
            if self.mismatch_count <= MAX_MISMATCHES:
                self.mismatches.append(what)

    def pack(self) -> bool:
        """Packs one slice that is over, since open histograms are large.

        Returns:
            Whether there was one.
        """
        if len(self._slices) < 2:
            return False
        self._packed.append(self._slices.pop(0).to_json())
        return True

    def to_json(self) -> dict[str, Any]:
        """Gives everything in a form that `json` writes."""
        started_ns, started_cpu = self._started
        seconds = (self._now_ns() - started_ns) / 1e9
        return {
            "slices": [*self._packed, *(each.to_json() for each in self._slices)],
            "cpu_share": (time.process_time() - started_cpu) / seconds,
            "verified": self.verified,
            "mismatch_count": self.mismatch_count,
            "mismatches": self.mismatches,
        }

    def _now(self) -> Slice:
        """Gives the slice that is under way."""
        while self._now_ns() >= self._ends_ns:
            if len(self._packed) + len(self._slices) == self._num_slices:
                self._ends_ns = float("inf")
                break
            self._ends_ns += self._slice_ns
            self._slices.append(Slice())
        return self._slices[-1]
