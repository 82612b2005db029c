"""Starts the client processes of a load test, follows their progress, and adds their results up."""

import asyncio
import contextlib
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from statepool.aio.client import AsyncClient
from statepool.loadtest.facts import gather
from statepool.loadtest.options import LoadOptions
from statepool.loadtest.report import Report
from statepool.loadtest.usage import watch_usage

GRACE_SECONDS = 30.0
"""How much longer than asked a process may take before the load test gives up on it."""

MAX_LINE_BYTES = 2**26


class LoadFailedError(Exception):
    """A client process ended without a result; the message has its last words."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Counts so far, over all processes."""

    operations: int
    """Operations measured."""
    errors: int
    """Operations that failed."""
    copied_bytes: int
    """Bytes copied."""
    verified: int
    """Comparisons made."""


async def run_load(options: LoadOptions, on_progress: Callable[[Progress], None]) -> Report:
    """Runs a load test.

    Args:
        options: What to do.
        on_progress: Called a few times a second.

    Returns:
        The results.

    Raises:
        LoadFailedError: A process could not do its part.
        StatepoolError: The server does not answer.
    """
    latest: dict[int, Mapping[str, int]] = {}

    def progressed(number: int, message: Mapping[str, int]) -> None:
        latest[number] = message
        names = Progress.__dataclass_fields__
        on_progress(Progress(**{name: sum(message[name] for message in latest.values()) for name in names}))

    async with AsyncClient(options.target) as client, contextlib.AsyncExitStack() as stack:
        report = Report(options, facts=gather(await client.get_server_info(), await client.get_pool()))
        processes = [await stack.enter_async_context(_process(options, n)) for n in range(options.processes)]
        await asyncio.gather(*(_expect_ready(process) for process in processes))
        for process in processes:
            await _send(process, "go")
        stack.callback(asyncio.create_task(watch_usage(client, options, report.usage)).cancel)
        async with asyncio.timeout(options.warmup + options.duration + GRACE_SECONDS):
            results = await asyncio.gather(
                *(_result(process, partial(progressed, number)) for number, process in enumerate(processes))
            )
    for result in results:
        report.add(result)
    return report


@contextlib.asynccontextmanager
async def _process(options: LoadOptions, number: int) -> AsyncIterator[Process]:
    command = (sys.executable, "-m", "statepool.loadtest.worker")
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=PIPE, limit=MAX_LINE_BYTES)
    try:
        await _send(process, json.dumps({"first_caller": number, "options": asdict(options)}))
        yield process
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.communicate()


async def _send(process: Process, line: str) -> None:
    assert process.stdin is not None  # noqa: S101 - it was started with a pipe
    with contextlib.suppress(ConnectionError):  # it has died; its output tells why
        process.stdin.write(line.encode() + b"\n")
        await process.stdin.drain()


async def _message(process: Process) -> dict[str, Any]:
    assert process.stdout is not None  # noqa: S101 - it was started with a pipe
    assert process.stderr is not None  # noqa: S101 - it was started with a pipe
    line = await process.stdout.readline()
    if not line:
        words = (await process.stderr.read()).decode(errors="replace").strip().splitlines()
        raise LoadFailedError(words[-1] if words else "a client process ended without a word")
    message: dict[str, Any] = json.loads(line)
    return message


async def _expect_ready(process: Process) -> None:
    await _message(process)


async def _result(process: Process, on_progress: Callable[[Mapping[str, int]], None]) -> Mapping[str, Any]:
    while (message := await _message(process))["kind"] != "result":
        on_progress(message)
    return message
