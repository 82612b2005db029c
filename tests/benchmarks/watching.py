"""What watchers cost: steps of a server that 64 watch while much changes, against one where as much does, unwatched."""

import asyncio
import contextlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from benchmarks.steps import SEQUENCES, Row, admit, broadcast, server, stepping
from benchmarks.turns import compare
from statepool import AsyncClient, BlockRefs, Client

WATCHERS = 64
PROCESSES = 4
EVENTS_PER_SECOND = 5000
ROUND_SECONDS = 0.05
BATCH = round(EVENTS_PER_SECOND * ROUND_SECONDS / 2)
"""Blocks that become findable in a round; those of the round before are so no longer."""
BLOCK_TOKENS = 2**20
"""No pass of the measured sequences crosses a boundary."""
HASH_BYTES = 32


def churn(target: str, over: threading.Event) -> None:
    """Makes blocks findable and takes them back, so many a second, until it is told to stop."""
    tokens = [BLOCK_TOKENS] * BATCH
    with Client(target, timeout=60) as client, client.create_session(600) as session:
        former, number, due = BlockRefs.empty(), 0, time.monotonic()
        while not over.wait(max(0.0, due - time.monotonic())):
            number, due = number + 1, due + ROUND_SECONDS
            blocks = session.allocate_blocks(BATCH, zero=False)
            hashes = [b"%0*d" % (HASH_BYTES, number * BATCH + row) for row in range(BATCH)]
            session.commit_blocks(blocks, prefix_hashes=hashes, boundary_tokens=tokens, written_through_tokens=tokens)
            session.evict_blocks(former)
            session.free_blocks(former)
            former = blocks


async def watch(target: str, watchers: int, over: threading.Event) -> float:
    """Watches over as many connections; returns the changes a second that the one told least was told."""

    async def count() -> float:
        rows, started = 0, time.perf_counter()
        async with AsyncClient(target) as client:
            async for changes in client.watch_blocks(timeout=60):
                rows += len(changes.listed) + len(changes.unlisted_block_ids)
                if over.is_set():
                    return rows / (time.perf_counter() - started)
        raise AssertionError("a watch does not end")

    return min(await asyncio.gather(*(count() for _ in range(watchers))))


@contextlib.contextmanager
def others(what: str, target: str) -> Iterator["subprocess.Popen[str]"]:
    """Runs a part of the load in another process until the block ends."""
    command = [sys.executable, "-m", "benchmarks.watching", what, target]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.communicate()


async def against_unwatched(watched: str, unwatched: str) -> list[Row]:
    """Compares a step of one server with that of the other."""
    async with contextlib.AsyncExitStack() as stack:
        operations = []
        for target in (watched, unwatched):
            client = await stack.enter_async_context(AsyncClient(target))
            session = await stack.enter_async_context(await client.create_session(600))
            scheduler = await stack.enter_async_context(session.scheduler())
            await admit(scheduler, SEQUENCES)
            stack.enter_context(others("churn", target))
            operations.append(stepping(scheduler, broadcast()))
        watchers = [stack.enter_context(others("watch", watched)) for _ in range(PROCESSES)]
        await _until_watched(watched)
        processes = [await _process(target) for target in (watched, unwatched)]
        began, before = time.perf_counter(), [_cpu_seconds(process) for process in processes]
        measured = await compare(*operations)
        used = [_cpu_seconds(process) - start for process, start in zip(processes, before, strict=True)]
        share = (used[0] - used[1]) / (time.perf_counter() - began) * 100
        told = [float((await asyncio.to_thread(process.communicate))[0]) for process in watchers]
    return [
        (f"step of {SEQUENCES}, {WATCHERS} watchers / none", measured.ratio, "x", "<= 1.10"),
        ("  CPU of the server for the watchers, of one core", share, "%", ""),
        ("  changes told to each of them", min(told), "/s", f">= {EVENTS_PER_SECOND * 0.9:g}"),
    ]


async def _process(target: str) -> psutil.Process:
    async with AsyncClient(target) as client:
        return psutil.Process((await client.get_server_info()).pid)


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def _until_watched(target: str) -> None:
    async with AsyncClient(target) as client:
        while not any(  # noqa: ASYNC110 - no event tells of it
            sample.name == "statepool_watchers" and sample.value == WATCHERS
            for sample in (await client.get_metrics()).samples
        ):
            await asyncio.sleep(0.1)


def rows() -> list[Row]:
    """Starts two servers and measures."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folders = [Path(name) / each for each in ("watched", "unwatched")]
        for folder in folders:
            folder.mkdir()
        targets = [stack.enter_context(server(folder, BLOCK_TOKENS, 4097)) for folder in folders]
        return asyncio.run(against_unwatched(*targets))


def main(what: str, target: str) -> None:
    """Is a part of the load, until the standard input ends."""
    over = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        over.set()

    ender = threading.Thread(target=wait)
    ender.start()
    if what == "churn":
        churn(target, over)
    else:
        print(asyncio.run(watch(target, WATCHERS // PROCESSES, over)))
    ender.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
