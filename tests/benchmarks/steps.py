"""Engine steps over the stream: against a bare stream echo, and against planning entry by entry in one process."""

import asyncio
import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

import grpc
import numpy as np
import torch

from benchmarks import entry_by_entry, rpc_floor
from benchmarks.turns import TURNS, Operation, compare, turn_us
from statepool import ALL_RUNNING, Admission, AsyncClient, AsyncScheduler, Commits, Execution, Schedules, StepOutcome
from statepool.calls.sequences import StepArguments, schedule_step
from statepool.v1 import sequence_pb2
from statepool_server.pool import Pool, PoolConfig
from statepool_server.sequences.requests import Admissions, StepRequest
from statepool_server.sequences.requests import Schedules as ScheduleRows

SEQUENCES = 256
BATCHES = (1, 16, 64, 256, 1024)
SCHEDULERS = (1, 4, 16, 64)
LAYERS = 36
QUIET_TOKENS, BUSY_TOKENS = 2**20, 1
"""Tokens of a block: no pass crosses a boundary, and every pass does."""
ROUNDS = 100
REPEATS = 12
SECONDS = 1.0
Row = tuple[str, float, str, str]
"""Name, value, unit, bar."""


@contextlib.contextmanager
def server(folder: Path, block_tokens: int, blocks: int, *flags: str) -> Iterator[str]:
    """Starts a server with small blocks; yields its target."""
    target = f"unix:{folder / f'{block_tokens}.sock'}"
    command = Path(sys.executable).with_name("statepool-server")
    sizes = ("--model-config", "lfm2", "--tp-size", "8", "--blocks", str(blocks), "--block-tokens", str(block_tokens))
    quiet = ("--log-level", "warning", "--listen", target, "--state-dir", str(folder / f"state{block_tokens}"))
    with _until_ready(subprocess.Popen([command, *sizes, *quiet, *flags]), target):
        yield target


@contextlib.contextmanager
def echo(folder: Path) -> Iterator[str]:
    """Starts a bare gRPC echo; yields its target."""
    target = f"unix:{folder / 'echo.sock'}"
    command = [sys.executable, rpc_floor.__file__, target]
    with _until_ready(subprocess.Popen(command, stdout=subprocess.DEVNULL), target):
        yield target


@contextlib.contextmanager
def _until_ready(process: "subprocess.Popen[bytes]", target: str) -> Iterator[None]:
    try:
        with grpc.insecure_channel(target) as channel:
            grpc.channel_ready_future(channel).result(timeout=60)
        yield
    finally:
        process.terminate()
        process.wait()


async def admit(scheduler: AsyncScheduler, sequences: int) -> None:
    """Begins sequences and runs their first pass."""
    rows = [Admission(number, 8) for number in range(sequences)]
    await scheduler.step(admit=rows, schedule=Schedules(np.arange(sequences), 8))
    await scheduler.step(commit=Commits(ALL_RUNNING), schedule=Schedules(ALL_RUNNING))


class Columns(TypedDict):
    """What a step says in which each sequence of the batch decodes one token."""

    commit: Commits
    schedule: Schedules


def broadcast() -> Columns:
    """Says it in as few words as can be."""
    return {"commit": Commits(ALL_RUNNING), "schedule": Schedules(ALL_RUNNING)}


def explicit(sequences: int) -> Columns:
    """Writes every column out."""
    ids, ones, zeros = np.arange(sequences), np.ones(sequences, np.int64), np.zeros(sequences, np.int64)
    return {"commit": Commits(ids, ones), "schedule": Schedules(ids, ones, zeros)}


def stepping(scheduler: AsyncScheduler, columns: Columns) -> Operation:
    """Makes the operation that sends a step and receives its outcome."""
    return lambda: scheduler.step(**columns)


def sizes(columns: Columns, outcome: StepOutcome) -> tuple[int, int]:
    """Counts the bytes of a step and of its answer on the stream."""
    arguments: StepArguments = {
        **columns,
        "admit": (),
        "finish": (),
        "settled_step": None,
        "partial_admission": False,
    }
    request = schedule_step(outcome.step, Execution.SERVER, arguments)
    answer = sequence_pb2.StepOutcome.FromString(outcome.to_bytes())
    return request.ByteSize(), sequence_pb2.ScheduleResponse(incarnation=1, outcome=answer).ByteSize()


async def against_echo(target: str, echo_target: str) -> list[Row]:
    """Compares steps without a change with an echo of as many bytes."""
    rows: list[Row] = []
    async with AsyncClient(target) as client, grpc.aio.insecure_channel(echo_target) as channel:
        for name, columns, bar in (("broadcast", broadcast(), "<= 1.5"), ("explicit", explicit(SEQUENCES), "<= 2")):
            stream: grpc.aio.StreamStreamCall[bytes, bytes] = channel.stream_stream(rpc_floor.STREAM)()
            async with await client.create_session(600) as session, session.scheduler() as scheduler:
                await admit(scheduler, SEQUENCES)
                sent, received = sizes(columns, await scheduler.step(**columns))
                floor = rpc_floor.echo_round(stream, sent, received)
                measured = await compare(stepping(scheduler, columns), floor)
            stream.cancel()
            what = f"step of {SEQUENCES}, columns {name}"
            rows.append((f"{what} / stream echo of {sent} + {received} B", measured.ratio, "x", bar))
            rows.append((f"  {what}", measured.us, "us", ""))
    return rows


async def against_planning(target: str) -> list[Row]:
    """Compares a step in which every sequence enters its next column with planning its copies entry by entry."""
    states = torch.zeros(SEQUENCES * 2 + 1, 3, 64), torch.zeros(SEQUENCES * 2 + 1, 2, 16, 16)
    layers = [states] * LAYERS
    async with (
        AsyncClient(target) as client,
        await client.create_session(600) as session,
        session.scheduler(execution=Execution.WORKER) as scheduler,
    ):
        await admit(scheduler, SEQUENCES)
        step, best = stepping(scheduler, broadcast()), [float("inf"), float("inf")]
        for _ in range(REPEATS):
            started = time.perf_counter()
            for _ in range(ROUNDS // 10):
                await step()
            best[0] = min(best[0], (time.perf_counter() - started) / (ROUNDS // 10) * 1e6)
            requests = [entry_by_entry.Request([row, row + 1], 0, 1) for row in range(1, SEQUENCES + 1)]
            started = time.perf_counter()
            entry_by_entry.plan(requests, layers)
            best[1] = min(best[1], (time.perf_counter() - started) * 1e6)
    entries = SEQUENCES * LAYERS * 2
    return [
        (f"planning {entries:,} entries in Python / a step that plans them", best[1] / best[0], "x", ">= 25"),
        (f"  step of {SEQUENCES}, all crossing, execute = WORKER", best[0], "us", ""),
    ]


async def by_batch(target: str) -> list[Row]:
    """Measures steps of batches of several sizes, with every column explicit."""
    rows: list[Row] = []
    async with AsyncClient(target) as client:
        for batch in BATCHES:
            async with await client.create_session(600) as session, session.scheduler() as scheduler:
                await admit(scheduler, batch)
                turns = [await turn_us(stepping(scheduler, explicit(batch))) for _ in range(TURNS)]
                rows.append((f"  step of {batch}, explicit", statistics.median(turns), "us", ""))
    return rows


async def by_schedulers(target: str) -> list[Row]:
    """Measures how many steps of 64 sequences a server applies for several schedulers at once."""
    rows: list[Row] = []
    async with AsyncClient(target) as client:
        for count in SCHEDULERS:
            async with contextlib.AsyncExitStack() as stack:
                steps = [await _scheduler_of(client, stack) for _ in range(count)]
                counts = await asyncio.gather(*(_steps_within(step, SECONDS) for step in steps))
            rows.append((f"  steps of 64 sequences, {count} schedulers", sum(counts) / SECONDS, "per s", ""))
    return rows


async def _scheduler_of(client: AsyncClient, stack: contextlib.AsyncExitStack) -> Operation:
    session = await stack.enter_async_context(await client.create_session(600))
    scheduler = await stack.enter_async_context(session.scheduler())
    await admit(scheduler, 64)
    return stepping(scheduler, broadcast())


async def _steps_within(step: Operation, seconds: float) -> int:
    count, until = 0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        await step()
        count += 1
    return count


def bytes_per_sequence(sequences: int = 16384, num_spec: int = 4) -> float:
    """Measures the server's memory for a sequence that runs, beside its blocks."""
    config = PoolConfig(block_count=sequences * (num_spec + 1) + 1, block_tokens=256, num_spec=num_spec)
    pool = Pool(config)
    session, _ = pool.create_session("", 10**18, False, 0)
    ids, ones = np.arange(sequences), np.ones(sequences, np.int64)
    tracemalloc.start()
    admissions = Admissions(ids, ones, ones, np.zeros(sequences + 1, np.int64), (), [""] * sequences)
    schedules = ScheduleRows(ids, np.ones(1, np.int64), np.zeros(1, np.int64))
    outcome = pool.step(session.session_id, session.epoch, StepRequest(1, admissions=admissions, schedules=schedules))
    assert outcome.work is not None
    pool.finish_work(outcome.work)
    del outcome, admissions, schedules, ids, ones
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return used / sequences


def rows() -> list[Row]:
    """Starts servers and measures."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        quiet = stack.enter_context(server(folder, QUIET_TOKENS, 4097))
        echoing = stack.enter_context(echo(folder))
        measured = asyncio.run(against_echo(quiet, echoing))
        busy = stack.enter_context(server(folder, BUSY_TOKENS, 2 * SEQUENCES + 1))
        measured += asyncio.run(against_planning(busy))
        measured += asyncio.run(by_batch(quiet))
        measured += asyncio.run(by_schedulers(quiet))
    return [*measured, ("memory per sequence beside its blocks", bytes_per_sequence(), "bytes", "< 1024")]
