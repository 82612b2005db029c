"""What must hold for a load test to pass: bounds that its caller has set, and what goes without saying."""

import operator
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from statepool.loadtest.options import AlignWorkload, Workload
from statepool.loadtest.report import Report
from statepool.loadtest.slices import ALL, Slice
from statepool.loadtest.verdicts import Verdict
from statepool.units import format_seconds, parse_seconds

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_LATENCY = re.compile(r"(?:([a-z_]+)\.)?(p[0-9]{1,2}(?:\.[0-9]+)?|mean|max)(<=?|>=?)(.+)")
_THROUGHPUT = re.compile(r"(?:([a-z_]+)\.)?throughput(<=?|>=?)([0-9]+(?:\.[0-9]+)?)/s")
_ERRORS = re.compile(r"errors(<=?|>=?)([0-9]+(?:\.[0-9]+)?)(%?)")
FORMS = "p99<2ms, step_quiet.max<=1s, throughput>1000/s, errors<0.1% or errors<=3"


@dataclass(frozen=True, slots=True)
class Threshold:
    """A bound on one measure.

    Attributes:
        is_of_errors: Whether it bounds errors, of which there must be none unless something is said about them.
    """

    text: str
    """As it was written."""
    measure: Callable[[Report, Slice], float | None]
    """What it bounds; None: there is nothing to measure, which never holds."""
    comparison: str
    """``<``, ``<=``, ``>`` or ``>=``."""
    bound: float
    """In seconds, per second, or as a share or number of errors."""
    write: Callable[[float], str]
    """Writes a value for people."""
    is_of_errors: bool = False
    operation: str = ALL
    """What it is about."""

    @classmethod
    def parse(cls, text: str) -> "Threshold":
        """Reads a threshold such as ``p99<2ms``, ``step_quiet.max<=1s``, ``throughput>1000/s`` or ``errors<0.1%``.

        Raises:
            ValueError: Another form.
        """
        squeezed = "".join(text.split())
        for pattern, build in ((_LATENCY, _latency), (_THROUGHPUT, _throughput), (_ERRORS, _errors)):
            if match := pattern.fullmatch(squeezed):
                return build(text, match)
        raise ValueError(f"threshold {text!r}: must look like {FORMS}")

    @classmethod
    def objective(cls, text: str) -> "Threshold":
        """Reads an objective such as ``p99=5ms`` or ``copy.p99=5ms``, which is a latency that is not exceeded.

        Raises:
            ValueError: Another form.
        """
        match = re.fullmatch(r"((?:[a-z_]+\.)?p[0-9.]+)=([^=]+)", "".join(text.split()))
        if match is None:
            raise ValueError(f"slo {text!r}: must look like p99=5ms or copy.p99=5ms")
        return cls.parse(f"{match[1]}<={match[2]}")

    def check(self, workload: Workload) -> None:
        """Makes sure that a workload has what it is about.

        Raises:
            ValueError: No such operation is ever measured.
        """
        known = (*workload.operations, ALL)
        if self.operation not in known:
            raise ValueError(f"{self.text!r}: {workload.name} measures no {self.operation!r}, but {', '.join(known)}")

    def judge(self, report: Report, total: Slice) -> Verdict:
        """Compares a report with the bound."""
        value = self.measure(report, total)
        if value is None:
            return Verdict(self.text, "no such operation", holds=False)
        return Verdict(self.text, self.write(value), _COMPARISONS[self.comparison](value, self.bound))


def judge(report: Report, thresholds: Sequence[Threshold]) -> list[Verdict]:
    """Judges a report.

    Args:
        report: What was measured.
        thresholds: What its caller wants. There must be no error unless one of them is about errors; and no mismatch,
            and something to measure, at any rate.

    Returns:
        What must hold, and whether it does.
    """
    total = report.total()
    return [*_goes_without_saying(report, total, thresholds), *(each.judge(report, total) for each in thresholds)]


def _goes_without_saying(report: Report, total: Slice, thresholds: Sequence[Threshold]) -> Iterator[Verdict]:
    failed = report.mismatch_count
    yield Verdict("no comparison fails", f"{failed} of {report.verified} comparisons failed", not failed)
    if not any(each.is_of_errors for each in thresholds):
        errors = total.errors.total()
        yield Verdict("no operation fails", f"{errors} operations failed", not errors)
    if not total.operations:
        yield Verdict("something happens", "nothing was measured", holds=False)
    elif isinstance(report.options.workload, AlignWorkload) and not total.counts["generated_tokens"]:
        measured = "no engine has generated a token; the pool may be too small"
        yield Verdict("tokens are generated", measured, holds=False)


def _latency(text: str, match: re.Match[str]) -> Threshold:
    operation, what = match[1] or ALL, match[2]
    if not match[4][-1].isalpha():
        raise ValueError(f"threshold {text!r}: {match[4]} must have a unit, such as {match[4]}ms")

    def measure(_report: Report, total: Slice) -> float | None:
        histogram = total.latencies(operation)
        if histogram is None:
            return None
        if what in ("mean", "max"):
            return float(histogram.get_mean_value() if what == "mean" else histogram.get_max_value()) / 1e9
        return float(histogram.get_value_at_percentile(float(what[1:]))) / 1e9

    return Threshold(text, measure, match[3], parse_seconds(match[4]), format_seconds, operation=operation)


def _throughput(text: str, match: re.Match[str]) -> Threshold:
    operation = match[1] or ALL

    def measure(report: Report, total: Slice) -> float | None:
        histogram = total.latencies(operation)
        return None if histogram is None else float(histogram.get_total_count()) / report.options.duration

    return Threshold(text, measure, match[2], float(match[3]), lambda value: f"{value:.1f}/s", operation=operation)


def _errors(text: str, match: re.Match[str]) -> Threshold:
    is_share = bool(match[3])

    def measure(_report: Report, total: Slice) -> float | None:
        errors = total.errors.total()
        return errors / max(1, errors + total.operations) if is_share else float(errors)

    bound = float(match[2]) / 100 if is_share else float(match[2])
    write = "{:.3%}".format if is_share else "{:.0f}".format
    return Threshold(text, measure, match[1], bound, write, is_of_errors=True)
