"""``statepool loadtest``: drive a server with real traffic, verify its bytes, and report latencies."""

import asyncio
import json
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.status import Status

from statepool.cli.connect import HERE, Connection
from statepool.cli.failure import CommandError
from statepool.cli.options import Seconds
from statepool.loadtest.options import AlignWorkload, BlocksWorkload, LoadOptions, Workload
from statepool.loadtest.report import Objective, Report
from statepool.loadtest.run import LoadFailedError, Progress, run_load
from statepool.units import format_bytes

Count = Annotated[int, Parameter(validator=Number(gte=1, lte=100_000))]
ALIGN = Parameter(group="Align workload")
BLOCKS = Parameter(group="Blocks workload")


def loadtest(
    *,
    connection: Connection = HERE,
    workload: Literal["align", "blocks"] = "align",
    duration: Seconds = 10.0,
    warmup: Seconds = 1.0,
    rate: Annotated[float, Parameter(validator=Number(gte=0))] = 0.0,
    processes: Count = 1,
    verify: Annotated[float, Parameter(validator=Number(gte=0, lte=1))] = 0.1,
    seed: int = 0,
    engines: Annotated[Count, ALIGN] = 2,
    sequences: Annotated[Count, ALIGN] = 8,
    shared_blocks: Annotated[Count, ALIGN] = 4,
    prompt_tokens: Annotated[Count, ALIGN] = 64,
    output_tokens: Annotated[Count, ALIGN] = 64,
    concurrency: Annotated[Count, BLOCKS] = 8,
    mix: Annotated[Literal["mixed", "state", "prefix", "churn"], BLOCKS] = "mixed",
    batch: Annotated[Count, BLOCKS] = 8,
    slo: Annotated[list[str] | None, Parameter(negative=())] = None,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> int:
    """Drive a server with real traffic, verify its bytes, and report latencies.

    Exit codes: 0 done, 1 an operation failed to do what it must (a mismatch, an error, a missed objective).

    Args:
        connection: The server.
        workload: What to send. align: steps of simulated engines with continuous batching, speculation, preemption and
            aborts. blocks: calls of the block service.
        duration: How long to measure, such as 10s.
        warmup: How long to run before that.
        rate: Requests (blocks: operations) per second over all engines (lanes), which come whatever the answers take
            (open loop); latencies count from then. 0: the next one comes when one has ended (closed loop).
        processes: Client processes; one is busy with about 5,000 operations per second.
        verify: Share of the requests (blocks: state cycles) whose bytes are written, read back and compared.
        seed: Seed of everything random.
        engines: Simulated engines over all processes, each with a session, a stream and a worker of its own.
        sequences: Sequences that an engine runs at a time.
        shared_blocks: Blocks of tokens in the system prompts that requests share.
        prompt_tokens: Tokens of a request's own that follow, on average.
        output_tokens: Tokens that a request generates, on average.
        concurrency: Lanes over all processes, each with one operation under way.
        mix: Which calls. state: allocate, copy specs, copy, commit, look up, free. prefix: look up and commit chains of
            prefixes that lanes share. churn: allocate and free. mixed: all of it.
        batch: Blocks per operation.
        slo: An objective such as p99=5ms or step_quiet.p99=5ms; may be given several times.
        as_json: Print the report as JSON.
    """
    sent: Workload
    if workload == "align":
        sent = AlignWorkload(
            engines=max(engines, processes),
            sequences=sequences,
            shared_blocks=shared_blocks,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
        )
    else:
        sent = BlocksWorkload(concurrency=max(concurrency, processes), mix=mix, batch=batch)
    connection.security()  # what cannot be, is better said once than by every process
    options = LoadOptions(
        target=connection.target,
        tls=connection.tls,
        token_file="" if connection.token_file is None else str(connection.token_file),
        duration=duration,
        warmup=warmup,
        workload=sent,
        rate=rate,
        processes=processes,
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
    if report.mismatch_count:
        faults.append(f"{report.mismatch_count} comparisons failed")
    if report.errors:
        faults.append(f"{report.errors.total()} operations failed")
    if not report.operations:
        faults.append("nothing was measured")
    elif isinstance(report.options.workload, AlignWorkload) and not report.counts["generated_tokens"]:
        faults.append("no engine has generated a token; the pool may be too small")
    for fault in faults:
        Console(stderr=True).print(f"statepool: {fault}", highlight=False)
    return 1 if faults else 0


def _show_progress(status: Status, progress: Progress) -> None:
    status.update(
        f"{progress.operations} operations, {format_bytes(progress.copied_bytes)} copied, "
        f"{progress.verified} comparisons, {progress.errors} errors"
    )
