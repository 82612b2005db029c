"""A client process of a load test: options come in on standard input, progress and results go out as JSON lines."""

import asyncio
import json
import sys
import time
from typing import Any

from statepool.aio.client import AsyncClient
from statepool.descriptions import Pool
from statepool.loadtest.engine import Engine
from statepool.loadtest.lane import Lane
from statepool.loadtest.options import BlocksWorkload, LoadOptions
from statepool.loadtest.record import Recorder
from statepool.security import read_token

PROGRESS_SECONDS = 0.25


def _say(**message: Any) -> None:
    print(json.dumps(message), flush=True)


async def _progress(recorder: Recorder) -> None:
    while True:
        await asyncio.sleep(PROGRESS_SECONDS)
        _say(
            kind="progress",
            operations=recorder.operations,
            errors=recorder.errors,
            copied_bytes=recorder.copied_bytes,
            verified=recorder.verified,
        )
        recorder.pack()


async def _end_warmup(recorder: Recorder, seconds: float) -> None:
    await asyncio.sleep(seconds)
    recorder.start()


def _caller(number: int, options: LoadOptions, client: AsyncClient, pool: Pool, recorder: Recorder) -> Lane | Engine:
    if isinstance(options.workload, BlocksWorkload):
        return Lane(number, options.workload, options, client, pool, recorder)
    return Engine(number, options.workload, options, client, pool, recorder)


async def _work(options: LoadOptions, numbers: range) -> None:
    recorder = Recorder(options.slices, options.slice_seconds)
    token = read_token(options.token_file)
    async with AsyncClient(options.target, tls=options.tls, token=token) as client:
        pool = await client.get_pool()
        callers = [_caller(number, options, client, pool, recorder) for number in numbers]
        _say(kind="ready")
        await asyncio.to_thread(sys.stdin.readline)  # all processes begin together
        until_ns = time.perf_counter_ns() + round((options.warmup + options.duration) * 1e9)
        background = [
            asyncio.create_task(_progress(recorder)),
            asyncio.create_task(_end_warmup(recorder, options.warmup)),
        ]
        await asyncio.gather(*(caller.run(until_ns) for caller in callers))
        for task in background:
            task.cancel()
    _say(kind="result", **recorder.to_json())


def main() -> None:
    """Runs the callers that the first line of standard input names."""
    order = json.loads(sys.stdin.readline())
    options = LoadOptions.from_json(order["options"])
    asyncio.run(_work(options, range(order["first_caller"], options.workload.callers, options.processes)))


if __name__ == "__main__":
    main()
