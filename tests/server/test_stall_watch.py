"""Guarantee: work that stands still is told from work that was only not let run, and other troubles outlast it."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator

import pytest
from grpc_health.v1 import health_pb2

from statepool.errors import CopiesStalledError, OverloadedError
from statepool_server.logs import configure_logging
from statepool_server.service.copying import Chore, CopiesStuckError, CopyThreads
from statepool_server.service.health import Health
from statepool_server.service.stall_watch import StallWatch

TIMEOUT_SECONDS = 0.1
PATIENCE_SECONDS = 30.0


@pytest.fixture
async def copies() -> AsyncIterator[CopyThreads]:
    """Gives two threads with room for three works."""
    configure_logging("critical", "json")
    copies = CopyThreads(2, 3)
    yield copies
    await copies.close(PATIENCE_SECONDS)


@pytest.fixture
async def health(copies: CopyThreads) -> AsyncIterator[Health]:
    """Gives the health that a watch of the threads keeps."""
    health = Health(["statepool.v1.BlockService"])
    await health.ready()
    watching = asyncio.create_task(StallWatch(copies, health, TIMEOUT_SECONDS).run())
    yield health
    watching.cancel()
    await asyncio.wait([watching])


async def is_serving(health: Health) -> set[bool]:
    """Asks for the health of everything."""
    answers = [
        await health.servicer.Check(health_pb2.HealthCheckRequest(service=name), None)
        for name in ("", "statepool.v1.BlockService")
    ]
    return {answer.status == health_pb2.HealthCheckResponse.SERVING for answer in answers}


async def until_health(health: Health, serving: bool) -> None:
    """Waits for a change of health."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await is_serving(health) != {serving}:  # noqa: ASYNC110 — it is asked as anybody asks
            await asyncio.sleep(0.005)


async def test_a_stall_and_its_end(copies: CopyThreads, health: Health) -> None:
    """Who waits is refused, for queued work too, and who comes is; the end of the work lets everything go on."""
    gate = threading.Event()
    released: list[str] = []
    ends = [copies.submit(gate.wait, Chore.COPY, 0) for _ in range(3)]
    for end in ends:
        end.add_done_callback(lambda _: released.append("pins"))
    waiting = [asyncio.create_task(copies.wait(end)) for end in ends]
    with pytest.raises(OverloadedError):
        copies.check_room()

    await until_health(health, False)

    for waiter in waiting:
        with pytest.raises(CopiesStalledError, match="2 copies have been running for more") as caught:
            await waiter
        assert caught.value.retry_after
    for check in (copies.check_room, copies.check_moving):
        with pytest.raises(CopiesStalledError):
            check()
    with pytest.raises(CopiesStalledError):
        await copies.wait(ends[0])
    assert not released
    gate.set()
    await until_health(health, True)
    assert [await copies.wait(end) for end in ends] == [True] * 3
    copies.check_room()
    assert released == ["pins"] * 3


async def test_another_trouble_outlasts_a_stall(copies: CopyThreads, health: Health) -> None:
    """Health stays bad when memory work goes on and something else is wrong."""
    gate = threading.Event()
    end = copies.submit(gate.wait, Chore.COPY, 0)
    await until_health(health, False)
    await health.begin("leases do not end")

    gate.set()
    await end
    async with asyncio.timeout(PATIENCE_SECONDS):
        while copies.stalled is not None:  # noqa: ASYNC110 — no event tells of it
            await asyncio.sleep(0.005)

    assert await is_serving(health) == {False}
    await health.end("leases do not end")
    assert await is_serving(health) == {True}


async def test_time_in_which_the_loop_stood_still_does_not_count(copies: CopyThreads, health: Health) -> None:
    """A process that was held up for long gives its work the time that it had none of."""
    gate = threading.Event()
    end = copies.submit(gate.wait, Chore.COPY, 0)
    await asyncio.sleep(0)
    time.sleep(5 * TIMEOUT_SECONDS)  # noqa: ASYNC251 — as if the process had been stopped
    await asyncio.sleep(0)

    assert copies.stalled is None
    gate.set()
    assert await copies.wait(end)


async def test_moving_work_is_no_stall(copies: CopyThreads, health: Health) -> None:
    """Threads that are always busy, with work that ends in time, are well."""
    started = time.monotonic()
    while time.monotonic() < started + 5 * TIMEOUT_SECONDS:
        works = [copies.submit(lambda: time.sleep(TIMEOUT_SECONDS / 20), Chore.COPY, 0) for _ in range(2)]
        await asyncio.gather(*map(copies.wait, works))

    assert copies.stalled is None
    assert await is_serving(health) == {True}


async def test_a_waiter_that_leaves_does_not_stop_work(copies: CopyThreads) -> None:
    """Work goes on when its caller is cancelled."""
    gate = threading.Event()
    end = copies.submit(gate.wait, Chore.COPY, 0)
    waiting = asyncio.create_task(copies.wait(end))
    await asyncio.sleep(0)

    waiting.cancel()
    await asyncio.wait([waiting])
    gate.set()

    assert await end


async def test_closing_is_bounded() -> None:
    """Threads that hold their work do not hold those who end them."""
    gate = threading.Event()
    copies = CopyThreads(1, 2)
    copies.submit(gate.wait, Chore.COPY, 0)

    with pytest.raises(CopiesStuckError, match="1 copies have not ended within"):
        await copies.close(0.05)

    gate.set()
    await copies.close(PATIENCE_SECONDS)
