"""``statepool loadtest compare``: two load tests side by side, and what of their difference is noise."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich import box
from rich.console import Console
from rich.table import Table

from statepool.cli.failure import CommandError
from statepool.cli.loadtest import exit_code, load_report
from statepool.loadtest.compare import THROUGHPUT, Ratio, RatioBound, compare, differences
from statepool.loadtest.report import Report
from statepool.units import format_seconds

NOTE = "intervals: 95 %, of the noise within each run; between runs of the same program there may be more"


def compare_files(
    before: Path,
    after: Path,
    /,
    *,
    fail_if: Annotated[list[str] | None, Parameter(negative=())] = None,
) -> int:
    """Compare two load tests, and tell what of their difference is noise.

    Nothing is judged where the runs differ in what was asked, in their pools or in their machines.

    Exit codes: 0 done, 1 a --fail-if has come true or cannot be told, 2 the command was called wrongly, or a --fail-if
    is given for runs that cannot be compared.

    Args:
        before: What --json has written of the first one.
        after: The same of the second one.
        fail_if: What must not be, such as p99>1.1x, step_quiet.p50>1.05x or throughput<0.9x, and more than noise; may
            be given several times.
    """
    bounds = _read(fail_if or [])
    first, second = load_report(before), load_report(after)
    apart, ratios, console = differences(first, second), compare(first, second), Console(highlight=False)
    console.print(_table(ratios, is_judged=not apart))
    for line in _lines(first, second, apart):
        console.print(line, soft_wrap=True)
    if apart and bounds:
        raise CommandError("runs that differ in these cannot be compared", exit_code=2)
    return exit_code([bound.judge(ratios) for bound in bounds])


def _read(texts: list[str]) -> list[RatioBound]:
    try:
        return [RatioBound.parse(text) for text in texts]
    except ValueError as error:
        raise CommandError(str(error), exit_code=2) from error


def _table(ratios: list[Ratio], *, is_judged: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("operation", no_wrap=True)
    for name in ("", "before", "after", "ratio", *(("95 %", "") if is_judged else ())):
        table.add_column(name, justify="right", no_wrap=True)
    for each in ratios:
        table.add_row(*_cells(each), *(_judgement(each) if is_judged else ()))
    return table


def _cells(each: Ratio) -> list[str]:
    is_rate = each.measure == THROUGHPUT
    write = "{:.1f}".format if is_rate else format_seconds
    name = "per s" if is_rate else each.measure
    return [each.operation, name, write(each.before), write(each.after), f"{each.ratio:.3f}"]


def _judgement(each: Ratio) -> tuple[str, str]:
    interval = "" if each.interval is None else "{:.3f} … {:.3f}".format(*each.interval)
    return interval, each.judgement


def _lines(first: Report, second: Report, apart: list[str]) -> list[str]:
    errors = [report.total().errors.total() for report in (first, second)]
    lines = [f"errors: {errors[0]} → {errors[1]}"]
    return [*lines, "not judged, since the runs differ:", *(f"  {each}" for each in apart)] if apart else [*lines, NOTE]
