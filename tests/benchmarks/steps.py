"""Engine steps over the stream: against a bare stream echo, and against planning entry by entry in one process."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import grpc
import numpy as np

from benchmarks import rpc_floor
from statepool import ALL_RUNNING, Admission, AsyncClient, AsyncScheduler, Commits, Schedules

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
Round: TypeAlias = Callable[[], Awaitable[object]]


@contextlib.contextmanager
def server(folder: Path, block_tokens: int, blocks: int) -> Iterator[str]:
    """Starts a server with small blocks; yields its target."""
    target = f"unix:{folder / f'{block_tokens}.sock'}"
    command = Path(sys.executable).with_name("statepool-server")
    sizes = ("--model-config", "lfm2", "--tp-size", "8", "--blocks", str(blocks), "--block-tokens", str(block_tokens))
    quiet = ("--log-level", "warning", "--listen", target, "--state-dir", str(folder / f"state{block_tokens}"))
    with _until_ready(subprocess.Popen([command, *sizes, *quiet]), target):
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


def broadcast(scheduler: AsyncScheduler) -> Round:
    """Makes a step in which every sequence of the batch decodes one token, in as few words as can be."""
    commit, schedule = Commits(ALL_RUNNING), Schedules(ALL_RUNNING)
    return lambda: scheduler.step(commit=commit, schedule=schedule)


def explicit(scheduler: AsyncScheduler, sequences: int) -> Round:
    """Makes the same step with every column written out."""
    ids, ones, zeros = np.arange(sequences), np.ones(sequences, np.int64), np.zeros(sequences, np.int64)
    commit, schedule = Commits(ids, ones), Schedules(ids, ones, zeros)
    return lambda: scheduler.step(commit=commit, schedule=schedule)


async def compare(ours: Round, floor: Round) -> tuple[float, float]:
    """Measures two rounds in turns, microseconds: the best stretch of each."""
    best = [float("inf"), float("inf")]
    for _ in range(REPEATS):
        for index, measured in enumerate((ours, floor)):
            started = time.perf_counter()
            for _ in range(ROUNDS):
                await measured()
            best[index] = min(best[index], (time.perf_counter() - started) / ROUNDS * 1e6)
    return best[0], best[1]


async def against_echo(target: str, echo_target: str) -> list[Row]:
    """Compares steps without a change with an echo of as many bytes."""
    rows: list[Row] = []
    async with AsyncClient(target) as client, grpc.aio.insecure_channel(echo_target) as channel:
        for name, bar in (("broadcast", "<= 1.5"), ("explicit", "<= 2")):
            async with await client.create_session(600) as session, session.scheduler() as scheduler:
                await admit(scheduler, SEQUENCES)
                step = broadcast(scheduler) if name == "broadcast" else explicit(scheduler, SEQUENCES)
                sizes = _sizes(name)
                stream: grpc.aio.StreamStreamCall[bytes, bytes] = channel.stream_stream(rpc_floor.STREAM)()
                ours, floor = await compare(step, rpc_floor.echo_round(stream, *sizes))
                stream.cancel()
                what = f"step of {SEQUENCES} sequences, columns {name}"
                rows.append((f"{what} / stream echo of {sizes[0]} + {sizes[1]} B", ours / floor, "x", bar))
                rows.append((f"  {what}", ours, "us", ""))
    return rows
