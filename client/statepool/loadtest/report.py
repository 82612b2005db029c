"""The results of a load test, added up, printed and judged."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from hdrh.histogram import HdrHistogram
from rich import box
from rich.table import Table

from statepool.loadtest.options import LoadOptions
from statepool.loadtest.record import TTFT, new_histogram
from statepool.units import format_bytes, parse_seconds

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
"""What the report shows of each operation."""

_OBJECTIVE = re.compile(r"(?:([a-z_]+)\.)?p([0-9]{1,2}(?:\.[0-9]+)?)=(.+)")


@dataclass
class Report:
    """Results of all processes."""

    options: LoadOptions
    """What was asked."""
    histograms: dict[str, HdrHistogram] = field(default_factory=dict)
    """Latencies in nanoseconds, by operation."""
    errors: Counter[str] = field(default_factory=Counter)
    """Failed operations, by operation and error class."""
    counts: Counter[str] = field(default_factory=Counter)
    """What happened to requests and tokens, in the align workload."""
    copied_bytes: int = 0
    """Bytes that copies wrote, on all ranks."""
    verified: int = 0
    """Comparisons with what bytes and answers had to be."""
    mismatch_count: int = 0
    """Comparisons that failed."""
    mismatches: list[str] = field(default_factory=list)
    """What the first ones of each process were about."""

    def add(self, result: Mapping[str, Any]) -> None:
        """Adds the result of a process."""
        for name, encoded in result["histograms"].items():
            self.histograms.setdefault(name, new_histogram()).add(HdrHistogram.decode(encoded))
        self.errors.update(result["errors"])
        self.counts.update(result["counts"])
        self.copied_bytes += result["copied_bytes"]
        self.verified += result["verified"]
        self.mismatch_count += result["mismatch_count"]
        self.mismatches += result["mismatches"]

    @property
    def operations(self) -> int:
        """Operations that succeeded."""
        return int(self.overall().get_total_count())

    def overall(self) -> HdrHistogram:
        """Merges the latencies of all operations."""
        merged = new_histogram()
        for name, histogram in self.histograms.items():
            if name != TTFT:
                merged.add(histogram)
        return merged

    def to_json(self) -> dict[str, Any]:
        """Gives everything in a form that `json` writes; latencies in microseconds."""
        rows = {name: _latencies(histogram, self.options.duration) for name, histogram in self._rows()}
        return {
            "options": asdict(self.options),
            "operations": rows,
            "operations_per_second": self.operations / self.options.duration,
            "counts": dict(self.counts),
            "copied_bytes": self.copied_bytes,
            "copied_bytes_per_second": self.copied_bytes / self.options.duration,
            "verified": self.verified,
            "mismatch_count": self.mismatch_count,
            "mismatches": self.mismatches,
            "errors": dict(self.errors),
        }

    def table(self) -> Table:
        """Writes the latencies as a table."""
        loop = f"open loop, {self.options.rate:g}/s" if self.options.rate else "closed loop"
        table = Table(
            title=f"{self.options.workload}, {loop}, {self.options.duration:g} s",
            title_justify="left",
            box=box.SIMPLE_HEAD,
        )
        table.add_column("operation", no_wrap=True)
        for name in ("count", "per s", *(f"p{percentile:g} ms" for percentile in PERCENTILES), "max ms"):
            table.add_column(name, justify="right")
        for name, histogram in self._rows():
            row = _latencies(histogram, self.options.duration)
            times = [_milliseconds(row[f"p{percentile:g}_us"]) for percentile in PERCENTILES]
            table.add_row(name, f"{row['count']}", f"{row['per_second']:.0f}", *times, _milliseconds(row["max_us"]))
        return table

    def summary(self) -> list[str]:
        """Writes everything else, a line each."""
        rate = self.copied_bytes / self.options.duration
        lines = self._requests() if self.counts else []
        lines += [
            f"copied    {format_bytes(self.copied_bytes)} ({rate / 1e9:.2f} GB/s)",
            f"verified  {self.verified} comparisons, {self.mismatch_count} mismatches",
            f"errors    {self.errors.total()}",
        ]
        lines += [f"          {count} x {what}" for what, count in sorted(self.errors.items())]
        return lines + [f"MISMATCH  {what}" for what in self.mismatches]

    def _requests(self) -> list[str]:
        counts, seconds = self.counts, self.options.duration
        computed, generated, copies = counts["computed_tokens"], counts["generated_tokens"], counts["copies"]
        prompts, hits, preempted = counts["prompt_tokens"], counts["hit_tokens"], counts["preemptions"]
        return [
            f"requests  {counts['finished']} finished, {counts['aborted']} aborted, {preempted} preemptions",
            f"waiting   {counts['waiting']} requests at the end",
            f"prompts   {prompts} tokens, {hits} of them found ({hits / max(1, prompts):.0%})",
            f"passes    {computed} tokens computed ({computed / seconds:.0f}/s), {generated} generated",
            f"copies    {copies} ({copies / seconds:.0f}/s)",
        ]

    def _rows(self) -> Sequence[tuple[str, HdrHistogram]]:
        return [*sorted(self.histograms.items()), ("all", self.overall())]


@dataclass(frozen=True, slots=True)
class Objective:
    """A bound on a percentile of latency: ``p99=5ms`` of all operations, ``copy.p99=5ms`` of one."""

    text: str
    """As it was written."""
    operation: str
    """The operation; empty: all."""
    percentile: float
    """0 to 100."""
    seconds: float
    """The bound."""

    @classmethod
    def parse(cls, text: str) -> "Objective":
        """Reads an objective.

        Raises:
            ValueError: Another form.
        """
        match = _OBJECTIVE.fullmatch(text)
        if match is None:
            raise ValueError(f"slo {text!r}: must look like p99=5ms or copy.p99=5ms")
        return cls(text, match[1] or "", float(match[2]), parse_seconds(match[3]))

    def missed_by(self, report: Report) -> str | None:
        """Tells how a report misses the objective, None when it holds; an operation that never ran misses it."""
        histogram = report.histograms.get(self.operation) if self.operation else report.overall()
        if histogram is None or not histogram.get_total_count():
            return f"slo {self.text}: no such operation was measured"
        measured = histogram.get_value_at_percentile(self.percentile) / 1e9
        return None if measured <= self.seconds else f"slo {self.text}: measured {measured * 1000:.3f} ms"


def _latencies(histogram: HdrHistogram, seconds: float) -> dict[str, float]:
    count = histogram.get_total_count()
    values = {f"p{p:g}_us": histogram.get_value_at_percentile(p) / 1000 if count else 0.0 for p in PERCENTILES}
    largest = histogram.get_max_value() / 1000 if count else 0.0
    return {"count": count, "per_second": count / seconds, **values, "max_us": largest}


def _milliseconds(microseconds: float) -> str:
    return f"{microseconds / 1000:.2f}" if microseconds < 100_000 else f"{microseconds / 1000:.0f}"
