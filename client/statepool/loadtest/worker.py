"""A client process of a load test: options come in on standard input, progress and results go out as JSON lines."""

import asyncio
import json
import sys
import time
from typing import Any

from statepool.aio.client import AsyncClient
from statepool.loadtest.lane import Lane
from statepool.loadtest.options import LoadOptions
from statepool.loadtest.record import Recorder

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


async def _end_warmup(recorder: Recorder, seconds: float) -> None:
    await asyncio.sleep(seconds)
    recorder.start()


async def _work(options: LoadOptions, lanes: range) -> None:
    recorder = Recorder()
    async with AsyncClient(options.target) as client:
        pool = await client.get_pool()
        running = [Lane(number, options, client, pool, recorder) for number in lanes]
        _say(kind="ready")
        await asyncio.to_thread(sys.stdin.readline)  # all processes begin together
        until_ns = time.perf_counter_ns() + round((options.warmup + options.duration) * 1e9)
        background = [
            asyncio.create_task(_progress(recorder)),
            asyncio.create_task(_end_warmup(recorder, options.warmup)),
        ]
        await asyncio.gather(*(lane.run(until_ns) for lane in running))
        for task in background:
            task.cancel()
    _say(kind="result", **recorder.to_json())


def main() -> None:
    """Runs the lanes that the first line of standard input names."""
    order = json.loads(sys.stdin.readline())
    lanes = range(order["first_lane"], order["options"]["concurrency"], order["options"]["processes"])
    asyncio.run(_work(LoadOptions(**order["options"]), lanes))


if __name__ == "__main__":
    main()
