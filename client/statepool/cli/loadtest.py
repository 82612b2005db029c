"""``statepool loadtest``: drive a server with real traffic, verify its bytes, and report latencies."""

import asyncio
import json
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.status import Status

from statepool.channel import DEFAULT_TARGET
from statepool.cli.failure import CommandError
from statepool.cli.options import Seconds
from statepool.loadtest.options import LoadOptions
from statepool.loadtest.report import Objective, Report
from statepool.loadtest.run import LoadFailedError, Progress, run_load
from statepool.units import format_bytes

Count = Annotated[int, Parameter(validator=Number(gte=1, lte=100_000))]


def loadtest(
    *,
    target: str = DEFAULT_TARGET,
    duration: Seconds = 10.0,
    warmup: Seconds = 1.0,
    concurrency: Count = 8,
    rate: Annotated[float, Parameter(validator=Number(gte=0))] = 0.0,
    processes: Count = 1,
    mix: Literal["mixed", "state", "prefix", "churn"] = "mixed",
    batch: Count = 8,
    verify: Annotated[float, Parameter(validator=Number(gte=0, lte=1))] = 0.1,
    seed: int = 0,
    slo: Annotated[list[str] | None, Parameter(negative=())] = None,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> int:
    """Drive a server with real traffic, verify its bytes, and report latencies.

    Exit codes: 0 done, 1 an operation failed to do what it must (a mismatch, an error, a missed objective).

    Args:
        target: Where the server listens.
        duration: How long to measure, such as 10s.
        warmup: How long to run before that.
        concurrency: Lanes over all processes, each with one operation under way.
        rate: Operations per second over all lanes, sent on time whatever the answers take (open loop), with latencies
            counted from when an operation was due. 0: each lane sends when it has its answer (closed loop).
        processes: Client processes; one is busy with about 5,000 operations per second.
        mix: What to send. state: allocate, copy specs, copy, commit, look up, free. prefix: look up and commit chains
            of prefixes that lanes share. churn: allocate and free. mixed: all of it.
        batch: Blocks per operation.
        verify: Share of state cycles whose bytes are written, read back and compared.
        seed: Seed of everything random.
        slo: An objective such as p99=5ms or copy.p99=5ms; may be given several times.
        as_json: Print the report as JSON.
    """
    options = LoadOptions(
        target=target,
        duration=duration,
        warmup=warmup,
        concurrency=max(concurrency, processes),
        rate=rate,
        processes=processes,
        mix=mix,
        batch=batch,
        verify=verify,
        seed=seed,
    )
    try:
        objectives = [Objective.parse(text) for text in slo or []]
    except ValueError as error:
        raise CommandError(str(error), exit_code=2) from error
    report = measure(options)
    if as_json:
        print(json.dumps(report.to_json(), indent=2))
    else:
        show(report)
    return judge(report, objectives)


def measure(options: LoadOptions) -> Report:
    """Runs a load test with live progress on standard error.

    Raises:
        CommandError: A client process could not do its part.
    """
    with Console(stderr=True).status("starting clients …") as status:
        try:
            return asyncio.run(run_load(options, lambda progress: _show_progress(status, progress)))
        except (LoadFailedError, TimeoutError) as error:
            raise CommandError(f"the load test failed: {error}") from error


def show(report: Report) -> None:
    """Prints a report."""
    console = Console()
    console.print(report.table())
    for line in report.summary():
        console.print(line, highlight=False)


def judge(report: Report, objectives: list[Objective]) -> int:
    """Decides the exit code, and says on standard error why it is not 0."""
    faults = [missed for objective in objectives if (missed := objective.missed_by(report)) is not None]
    if report.mismatches:
        faults.append(f"{len(report.mismatches)} comparisons failed")
    if report.errors:
        faults.append(f"{report.errors.total()} operations failed")
    if not report.operations:
        faults.append("nothing was measured")
    for fault in faults:
        Console(stderr=True).print(f"statepool: {fault}", highlight=False)
    return 1 if faults else 0


def _show_progress(status: Status, progress: Progress) -> None:
    status.update(
        f"{progress.operations} operations, {format_bytes(progress.copied_bytes)} copied, "
        f"{progress.verified} comparisons, {progress.errors} errors"
    )
