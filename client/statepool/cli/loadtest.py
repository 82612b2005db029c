"""``statepool loadtest``: drive a server with real traffic, verify its bytes, and report latencies."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.status import Status

from statepool.cli.connect import HERE, Connection
from statepool.cli.failure import CommandError
from statepool.cli.options import Seconds, SomeTime
from statepool.loadtest.options import AlignWorkload, BlocksWorkload, LoadOptions, Workload
from statepool.loadtest.page import render
from statepool.loadtest.report import Report, ReportFileError, read_report
from statepool.loadtest.run import LoadFailedError, Progress, run_load
from statepool.loadtest.search import find_max as find_max_rate
from statepool.loadtest.summary import summary, table
from statepool.loadtest.thresholds import Threshold, judge
from statepool.loadtest.verdicts import Probe, Verdict
from statepool.units import format_bytes

Count = Annotated[int, Parameter(validator=Number(gte=1, lte=100_000))]
Texts = Annotated[list[str] | None, Parameter(negative=())]
ALIGN = Parameter(group="Align workload")
BLOCKS = Parameter(group="Blocks workload")
RESULTS = Parameter(group="Results")
STANDARD_OUTPUT = Path("-")


def _is_file(_type: object, path: Path | None) -> None:
    """Refuses another flag, which cyclopts takes for a value where ``-`` is one."""
    if str(path).startswith("--"):
        raise ValueError("needs a file, or - for standard output")


JSON_FILE = Parameter(name="--json", allow_leading_hyphen=True, validator=_is_file)

loadtest = App(name="loadtest", help="Drive a server with real traffic, verify its bytes, and report latencies.")

loadtest.command("statepool.cli.loadtest_compare:compare_files", name="compare", help="Compare two load tests.")


@loadtest.default
def load(
    *,
    connection: Connection = HERE,
    workload: Literal["align", "blocks"] = "align",
    duration: SomeTime = 10.0,
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
    slo: Annotated[Texts, RESULTS] = None,
    threshold: Annotated[Texts, RESULTS] = None,
    find_max: Annotated[bool, RESULTS, Parameter(negative=())] = False,
    report: Annotated[Path | None, RESULTS] = None,
    json_file: Annotated[Path | None, RESULTS, JSON_FILE] = None,
) -> int:
    """Drive a server with real traffic, verify its bytes, and report latencies.

    Exit codes: 0 done, 1 an operation failed to do what it must (a mismatch, an error, a missed threshold), 2 the
    command was called wrongly.

    Args:
        connection: The server.
        workload: What to send. align: steps of simulated engines with continuous batching, speculation, preemption and
            aborts. blocks: calls of the block service.
        duration: How long to measure, such as 10s.
        warmup: How long to run before that.
        rate: Requests (blocks: operations) per second over all engines (lanes), sent at this rate however long answers
            take (open loop); the time to the first token (blocks: every latency) counts from when each was due. 0: the
            next one comes when one has ended (closed loop).
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
        slo: A latency that must not be exceeded, such as p99=5ms or step_quiet.p99=5ms; may be given several times.
        threshold: What must hold, such as p99<2ms, step_quiet.max<=1s, throughput>1000/s or errors<0.1% (without it,
            no operation may fail); may be given several times.
        find_max: Search for the highest rate at which every --slo and --threshold holds, nothing fails, and what
            arrives is served, to within 5 %. Each probe takes --warmup and --duration; a rate that fails once is not
            tried again, so make --duration long on a busy machine. The search begins at --rate, or at half of what a
            closed loop reaches.
        report: Write an HTML page with curves, heat map and configuration to this file; the page loads nothing else.
        json_file: Write everything that was measured to this file, - for standard output instead of the table.
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
    thresholds = read_thresholds(slo or [], threshold or [], sent)
    check_files(report, json_file)
    if find_max:
        results = search(options, thresholds)
    else:
        results = measure(options)
        results.verdicts = judge(results, thresholds)
    publish(results, report, json_file)
    return exit_code(results.verdicts)


@loadtest.command
def draw(json_file: Annotated[Path, Parameter(name="json")], page: Path, /) -> None:
    """Draw the page of a load test again, from what --json has written.

    Args:
        json_file: The file.
        page: File to write the page to.
    """
    write_file(page, render(load_report(json_file)))


def read_thresholds(objectives: Sequence[str], thresholds: Sequence[str], workload: Workload) -> list[Threshold]:
    """Reads what must hold.

    Raises:
        CommandError: A text cannot be read, or names an operation that the workload has not.
    """
    try:
        wanted = [*map(Threshold.objective, objectives), *map(Threshold.parse, thresholds)]
        for each in wanted:
            each.check(workload)
    except ValueError as error:
        raise CommandError(str(error), exit_code=2) from error
    return wanted


def search(options: LoadOptions, thresholds: Sequence[Threshold]) -> Report:
    """Searches for the highest rate that holds, and tells every probe on standard error.

    Raises:
        CommandError: Nothing is said about what must hold, or a client process could not do its part.
    """
    if not thresholds:
        raise CommandError("--find-max needs a --slo or a --threshold", exit_code=2)
    console = Console(stderr=True, soft_wrap=True, highlight=False)

    def tell(probe: Probe) -> None:
        offered, served, outcome = probe.row()
        console.print(f"{offered:>11} offered, {served:>9} served per second: {outcome}")

    return find_max_rate(options, thresholds, measure, tell)


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
    console.print(table(report))
    for line in summary(report):
        console.print(line, highlight=False, markup=False)


def publish(report: Report, page: Path | None, json_file: Path | None) -> None:
    """Writes a report wherever it is wanted.

    Raises:
        CommandError: A file cannot be written.
    """
    text = json.dumps(report.to_json(), indent=1)
    if json_file == STANDARD_OUTPUT:
        print(text)
    else:
        show(report)
    if json_file not in (None, STANDARD_OUTPUT):
        write_file(json_file, text.encode())
    if page is not None:
        write_file(page, render(report))


def check_files(page: Path | None, json_file: Path | None) -> None:
    """Looks at the names of files before a long measurement, not after it.

    Raises:
        CommandError: A folder is not there, or both are the same.
    """
    if page is not None and json_file is not None and page.absolute() == json_file.absolute():
        raise CommandError(f"{page}: --report and --json need a file each", exit_code=2)
    for path in (page, json_file):
        if path is not None and not path.parent.is_dir():
            raise CommandError(f"{path}: {path.parent} is no folder", exit_code=2)


def write_file(path: Path, content: bytes) -> None:
    """Writes a file.

    Raises:
        CommandError: It cannot be written.
    """
    try:
        path.write_bytes(content)
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}") from error


def load_report(path: Path) -> Report:
    """Reads what ``--json`` has written.

    Raises:
        CommandError: It cannot be read, or is something else.
    """
    try:
        return read_report(path)
    except ReportFileError as error:
        raise CommandError(str(error), exit_code=2) from error


def exit_code(verdicts: Sequence[Verdict]) -> int:
    """Decides the exit code, and says on standard error why it is not 0."""
    missed = [verdict for verdict in verdicts if not verdict.holds]
    for verdict in missed:
        Console(stderr=True, soft_wrap=True).print(f"statepool: {verdict}", highlight=False)
    return 1 if missed else 0


def _show_progress(status: Status, progress: Progress) -> None:
    status.update(
        f"{progress.operations} operations, {format_bytes(progress.copied_bytes)} copied, "
        f"{progress.verified} comparisons, {progress.errors} errors"
    )
