"""The highest rate that a server sustains: rates are tried in an open loop until one holds and the next does not."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from statepool.loadtest.options import AlignWorkload, LoadOptions
from statepool.loadtest.report import Report
from statepool.loadtest.thresholds import Threshold, judge
from statepool.loadtest.verdicts import Probe, Verdict

PRECISION = 1.05
"""How far the rate that is found is below one that does not hold, at most."""
MOST_PROBES = 40
MAX_WAITING = 0.05
"""Share of what has arrived that may wait at the end, beside one: where it is more, the server does not follow."""
HOLDS_TWICE = "a rate holds twice"
FEWEST_ARRIVALS = 2
"""Rates at which less than this arrives in the time that is measured are not tried."""


@dataclass
class RateSearch:
    """Which rate to try next: doubled or halved until one holds and one does not, then in the middle.

    What has held is tried once more before it is believed; where it does not hold again, it has not held.
    """

    first: float
    """Where to begin."""
    lowest: float
    """Below this, nothing is tried."""
    failed: float = float("inf")
    """The lowest rate that did not hold."""
    confirmed: float = 0.0
    """The highest rate that has held twice."""
    _held: list[float] = field(default_factory=list)

    @property
    def best(self) -> float:
        """The highest rate that has held, 0: none has."""
        return max(self._held, default=0.0)

    def next_rate(self) -> float | None:
        """Tells what to try; None: the search is over."""
        if not self.best:
            rate = self.first if self.failed == float("inf") else self.failed / 2
            return rate if rate >= self.lowest else None
        if self.failed == float("inf"):
            return self.best * 2
        if self.failed > self.best * PRECISION:
            return float((self.failed * self.best) ** 0.5)
        return None if self.confirmed == self.best else self.best

    def tried(self, rate: float, *, holds: bool) -> None:
        """Takes in how it went."""
        if not holds:
            self.failed = min(self.failed, rate)
            self._held = [each for each in self._held if each < rate]
        elif rate in self._held:
            self.confirmed = rate
        else:
            self._held.append(rate)


def find_max(
    options: LoadOptions,
    thresholds: Sequence[Threshold],
    measure: Callable[[LoadOptions], Report],
    on_probe: Callable[[Probe], None],
) -> Report:
    """Searches for the highest rate at which the thresholds hold and the server follows.

    A search that has found one ends with its confirmation.

    Args:
        options: Of every probe; its rate is where to begin, or the lowest that makes sense where it is below that; 0:
            at half of what a closed loop reaches.
        thresholds: What must hold, beside what goes without saying.
        measure: Runs a load test.
        on_probe: Called after each probe.

    Returns:
        The report of the last probe, with all probes: that of the rate that is found, where one is.
    """
    lowest, probes = FEWEST_ARRIVALS / options.duration, list[Probe]()
    search = RateSearch(max(options.rate, lowest), lowest)

    def note(probe: Probe) -> None:
        probes.append(probe)
        on_probe(probe)

    if not options.rate:
        report = measure(options)
        note(Probe(0.0, _served(report), ()))
        search.first = max(probes[0].served / 2, search.lowest)
    for number in range(MOST_PROBES):
        rate = search.next_rate()
        if rate is None:
            break
        report = measure(replace(options, rate=rate, namespace=f"{options.namespace}.{number}"))
        verdicts, is_confirmation = judge_rate(report, thresholds), rate == search.best
        note(Probe(rate, _served(report), tuple(verdicts), is_confirmation))
        search.tried(rate, holds=probes[-1].holds)
    report.probes, report.verdicts = probes, [*judge_rate(report, thresholds), _outcome(search)]
    return report


def judge_rate(report: Report, thresholds: Sequence[Threshold]) -> list[Verdict]:
    """Judges a report, and whether the server has followed what arrived."""
    counts = report.total().counts
    arrived, waiting = counts["arrived"], counts["waiting"]
    follows = Verdict(
        "what arrives is served", f"{waiting} of {arrived} left waiting", waiting <= 1 + MAX_WAITING * arrived
    )
    return [*judge(report, thresholds), follows]


def _served(report: Report) -> float:
    """Tells how many requests or operations were served per second."""
    total, seconds = report.total(), report.options.duration
    if report.options.rate:
        return (total.counts["arrived"] - total.counts["waiting"]) / seconds
    if isinstance(report.options.workload, AlignWorkload):
        return (total.counts["finished"] + total.counts["aborted"]) / seconds
    return total.operations / seconds


def _outcome(search: RateSearch) -> Verdict:
    if search.confirmed and search.confirmed == search.best:
        return Verdict(HOLDS_TWICE, f"{search.confirmed:.1f}/s, and {search.failed:.1f}/s did not hold", holds=True)
    return Verdict(HOLDS_TWICE, "none does", holds=False)
