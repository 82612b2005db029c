"""A load test's results as text for a terminal."""

from rich import box
from rich.table import Table

from statepool.loadtest.options import AlignWorkload
from statepool.loadtest.report import PERCENTILES, Report, latencies, rows
from statepool.loadtest.slices import Slice
from statepool.units import format_bytes

BUSY = 0.9
"""Share of a core from which on a client process is said to have measured itself."""


def title(report: Report) -> str:
    """Names the workload, how it was sent and for how long."""
    options = report.options
    loop = f"open loop, {options.rate:g}/s" if options.rate else "closed loop"
    return f"{options.workload}, {loop}, {options.duration:g} s"


def table(report: Report) -> Table:
    """Writes the latencies as a table."""
    shown = Table(title=title(report), title_justify="left", box=box.SIMPLE_HEAD)
    shown.add_column("operation", no_wrap=True)
    for name in ("count", "per s", *(f"p{percentile:g} ms" for percentile in PERCENTILES), "max ms"):
        shown.add_column(name, justify="right")
    for name, histogram in rows(report.total()):
        row = latencies(histogram, report.options.duration)
        times = [_milliseconds(row[f"p{percentile:g}_us"]) for percentile in PERCENTILES]
        shown.add_row(name, f"{row['count']}", f"{row['per_second']:.0f}", *times, _milliseconds(row["max_us"]))
    return shown


def summary(report: Report) -> list[str]:
    """Writes everything else, a line each."""
    total, seconds = report.total(), report.options.duration
    copied = total.counts["copied_bytes"]
    return [
        *(_requests(total, seconds) if isinstance(report.options.workload, AlignWorkload) else []),
        *(_backlog(total) if report.options.rate else []),
        f"copied    {format_bytes(copied)} ({copied / seconds / 1e9:.2f} GB/s)",
        f"verified  {report.verified} comparisons, {report.mismatch_count} mismatches",
        *_clients(report),
        f"errors    {total.errors.total()}",
        *(f"          {count} x {what}{_example(total, what)}" for what, count in sorted(total.errors.items())),
        *(f"MISMATCH  {what}" for what in report.mismatches),
    ]


def _example(total: Slice, what: str) -> str:
    example = " ".join(total.examples.get(what, "").split())
    return f", such as: {example}" if example else ""


def _requests(total: Slice, seconds: float) -> list[str]:
    counts = total.counts
    computed, generated, copies = counts["computed_tokens"], counts["generated_tokens"], counts["copies"]
    prompts, hits, preempted = counts["prompt_tokens"], counts["hit_tokens"], counts["preemptions"]
    return [
        f"requests  {counts['finished']} finished, {counts['aborted']} aborted, {preempted} preemptions",
        f"prompts   {prompts} tokens, {hits} of them found ({hits / max(1, prompts):.0%})",
        f"passes    {computed} tokens computed ({computed / seconds:.0f}/s), {generated} generated",
        f"copies    {copies} ({copies / seconds:.0f}/s)",
    ]


def _backlog(total: Slice) -> list[str]:
    return [f"waiting   {total.counts['waiting']} of {total.counts['arrived']} that have arrived, at the end"]


def _clients(report: Report) -> list[str]:
    shares = [f"{share:.0%}" for share in report.cpu_shares]
    advice = ": they may be what was measured, see --processes" if max(report.cpu_shares, default=0) > BUSY else ""
    return [f"clients   took {', '.join(shares)} of a core{advice}"] if shares else []


def _milliseconds(microseconds: float) -> str:
    return f"{microseconds / 1000:.2f}" if microseconds < 100_000 else f"{microseconds / 1000:.0f}"
