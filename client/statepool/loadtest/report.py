"""The results of a load test: added up from its processes, written to a file, read again."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hdrh.histogram import HdrHistogram

from statepool.loadtest.facts import Facts
from statepool.loadtest.options import LoadOptions
from statepool.loadtest.slices import ALL, Slice
from statepool.loadtest.usage import UsageSample
from statepool.loadtest.verdicts import Probe, Verdict

FORMAT = "statepool-loadtest"
VERSION = 1
"""Of the file's schema, ``report.schema.json``; raised when a reader of the old one would misread a new file."""
PERCENTILES = (50.0, 90.0, 99.0, 99.9)
"""What is told of each operation."""


class ReportFileError(Exception):
    """A file is no load-test report, or one of another version."""


@dataclass
class Report:
    """Results of all processes."""

    options: LoadOptions
    """What was asked."""
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    """When, in UTC."""
    facts: Facts = field(default_factory=dict)
    """What it ran on, by subject: machine, client, server, pool."""
    slices: list[Slice] = field(default_factory=list)
    """What was measured, `LoadOptions.slice_seconds` each."""
    usage: list[UsageSample] = field(default_factory=list)
    """How full the pool was."""
    cpu_shares: list[float] = field(default_factory=list)
    """Share of one core that each client process took."""
    verified: int = 0
    """Comparisons with what bytes and answers had to be."""
    mismatch_count: int = 0
    """Comparisons that failed."""
    mismatches: list[str] = field(default_factory=list)
    """What the first ones of each process were about."""
    verdicts: list[Verdict] = field(default_factory=list)
    """What had to hold."""
    probes: list[Probe] = field(default_factory=list)
    """What a search for the highest rate has tried; all else is of the last probe."""

    def add(self, result: Mapping[str, Any]) -> None:
        """Adds the result of a process."""
        for number, values in enumerate(result["slices"]):
            if number == len(self.slices):
                self.slices.append(Slice())
            self.slices[number].add(Slice.from_json(values))
        self.cpu_shares.append(result["cpu_share"])
        self.verified += result["verified"]
        self.mismatch_count += result["mismatch_count"]
        self.mismatches += result["mismatches"]

    def total(self) -> Slice:
        """Adds the slices up."""
        return Slice.sum(self.slices)

    def to_json(self) -> dict[str, Any]:
        """Gives everything in a form that `json` writes, as ``report.schema.json`` describes it."""
        total, seconds = self.total(), self.options.duration
        return {
            "format": FORMAT,
            "version": VERSION,
            "started": self.started.isoformat(),
            "options": _asked(self.options),
            "facts": self.facts,
            "operations": {name: latencies(histogram, seconds) for name, histogram in rows(total)},
            "operations_per_second": total.operations / seconds,
            "counts": dict(total.counts),
            "errors": dict(total.errors),
            "verified": self.verified,
            "mismatch_count": self.mismatch_count,
            "mismatches": self.mismatches,
            "cpu_shares": self.cpu_shares,
            "thresholds": [asdict(verdict) for verdict in self.verdicts],
            "slice_seconds": self.options.slice_seconds,
            "slices": [each.to_json() for each in self.slices],
            "usage": [asdict(sample) for sample in self.usage],
            "probes": [{**asdict(probe), "holds": probe.holds} for probe in self.probes],
        }

    @classmethod
    def from_json(cls, values: Any) -> "Report":
        """Reads what `to_json` has made.

        Raises:
            ReportFileError: It is something else, or of another version.
        """
        if not isinstance(values, Mapping) or values.get("format") != FORMAT:
            raise ReportFileError("not a load-test report")
        if values.get("version") != VERSION:
            raise ReportFileError(f"version {values.get('version')!r}; this program reads version {VERSION}")
        try:
            return cls(
                options=LoadOptions.from_json(values["options"]),
                started=datetime.fromisoformat(values["started"]),
                facts=values["facts"],
                slices=[Slice.from_json(each) for each in values["slices"]],
                usage=[UsageSample(**sample) for sample in values["usage"]],
                cpu_shares=values["cpu_shares"],
                verified=values["verified"],
                mismatch_count=values["mismatch_count"],
                mismatches=values["mismatches"],
                verdicts=_verdicts(values["thresholds"]),
                probes=[_probe(probe) for probe in values["probes"]],
            )
        except Exception as error:  # whatever a damaged file brings about, in a histogram's decoder too
            raise ReportFileError(f"damaged: {type(error).__name__} {error}") from error


def read_report(path: Path) -> Report:
    """Reads a report from a file.

    Raises:
        ReportFileError: It cannot be read, or is no report of this version.
    """
    try:
        return Report.from_json(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ReportFileError(f"{path}: {error.strerror}") from error
    except (ValueError, ReportFileError) as error:
        raise ReportFileError(f"{path}: {error}") from error


def rows(total: Slice) -> Iterator[tuple[str, HdrHistogram | None]]:
    """Yields every operation by name, and all of them at last."""
    yield from sorted(total.histograms.items())
    yield ALL, total.latencies()


def latencies(histogram: HdrHistogram | None, seconds: float) -> dict[str, float]:
    """Gives an operation's count, rate and latencies in microseconds, all 0 where it has not been."""
    if histogram is None:
        return dict.fromkeys(("count", "per_second", *(f"p{p:g}_us" for p in PERCENTILES), "max_us"), 0)
    count = histogram.get_total_count()
    values = {f"p{p:g}_us": histogram.get_value_at_percentile(p) / 1000 for p in PERCENTILES}
    return {"count": count, "per_second": count / seconds, **values, "max_us": histogram.get_max_value() / 1000}


def _asked(options: LoadOptions) -> dict[str, Any]:
    """Leaves out how the run connected, which is nobody else's business."""
    return {name: value for name, value in asdict(options).items() if name not in ("tls", "token_file")}


def _verdicts(values: list[Mapping[str, Any]]) -> list[Verdict]:
    return [Verdict(**verdict) for verdict in values]


def _probe(values: Mapping[str, Any]) -> Probe:
    known = {name: value for name, value in values.items() if name != "holds"}
    return replace(Probe(**known), verdicts=tuple(_verdicts(values["verdicts"])))
