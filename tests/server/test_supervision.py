"""Guarantee: the death of what a server cannot do without is told by health, and a loop that stands still is seen."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import Any

import pytest
import structlog
from grpc_health.v1 import health_pb2
from structlog.testing import capture_logs
from structlog.typing import EventDict

from statepool_server.logs import configure_logging
from statepool_server.service import heartbeat, supervision
from statepool_server.service.health import LIVENESS, Health
from statepool_server.service.heartbeat import Heartbeat
from statepool_server.service.supervision import Supervisor

SERVICE = "statepool.v1.BlockService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture(autouse=True)
def logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EventDict]]:
    """Collects what is logged."""
    configure_logging("warning", "json")
    for module in (heartbeat, supervision):  # loggers keep the configuration of their first use
        monkeypatch.setattr(module, "_log", structlog.get_logger())
    with capture_logs() as entries:
        yield entries


@pytest.fixture
async def health() -> Health:
    """Gives the health of a server that is ready."""
    health = Health([SERVICE])
    await health.starting()
    await health.ready()
    return health


@pytest.fixture
async def supervisor(health: Health) -> AsyncIterator[Supervisor]:
    """Gives a supervisor, and ends what it runs."""
    supervisor = Supervisor(health.not_ready)
    yield supervisor
    await supervisor.close()


async def _status(health: Health, name: str) -> int:
    answer = await health.servicer.Check(health_pb2.HealthCheckRequest(service=name), None)
    return int(answer.status)


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Gives way to others until a condition holds."""
    async with asyncio.timeout(30):
        while not await condition():  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.005)


async def _until_not_ready(health: Health) -> None:
    async def is_not_ready() -> bool:
        return bool(await _status(health, "") != SERVING)

    await _until(is_not_ready)


async def _dies() -> None:
    raise RuntimeError("planted")


async def _returns() -> None:
    return


@pytest.mark.parametrize(
    ("work", "failure"), [(_dies, "RuntimeError: planted"), (_returns, "RuntimeError: ended by itself")]
)
async def test_death_of_a_part_is_told(
    health: Health,
    supervisor: Supervisor,
    logged: list[EventDict],
    work: Callable[[], Coroutine[Any, Any, None]],
    failure: str,
) -> None:
    """Every service turns to not serving, liveness stays, the reason is listed and logged, and no word undoes it."""
    part = supervisor.run("reaper", "sessions no longer expire", work())

    await _until_not_ready(health)
    await health.ready()

    assert [await _status(health, name) for name in ("", SERVICE, LIVENESS)] == [NOT_SERVING, NOT_SERVING, SERVING]
    assert [(listed.name, listed.failure) for listed in supervisor.parts] == [("reaper", failure)]
    assert part.failure == failure
    (entry,) = logged
    assert entry["event"] == "background work died: sessions no longer expire"
    assert str(entry["exc_info"]) in failure


async def test_death_of_a_thread_is_told(health: Health, supervisor: Supervisor) -> None:
    """A part that is no coroutine tells of its death from its own thread; the first reason stays."""
    part = supervisor.part("journal", "nothing is written down")

    def die_twice() -> None:
        part.failed(OSError("disk full"))
        part.failed(OSError("again"))

    await asyncio.to_thread(die_twice)
    await _until_not_ready(health)

    assert part.failure == "OSError: disk full"


async def test_end_of_the_server_is_no_death(health: Health, supervisor: Supervisor) -> None:
    """Parts that are ended with the server have not failed."""
    part = supervisor.run("heartbeat", "nothing is noticed", Heartbeat().run())
    await asyncio.sleep(0)

    await supervisor.close()

    assert part.failure == ""
    assert await _status(health, "") == SERVING


async def test_loop_that_stands_still_is_seen(supervisor: Supervisor, logged: list[EventDict]) -> None:
    """A stall is told once while it lasts, with the line that holds the loop up, and measured when it is over."""
    beat = Heartbeat(beat_seconds=0.01, stall_seconds=0.1)
    supervisor.run("heartbeat", "a loop that stands still is no longer noticed", beat.run())

    async def has_beaten() -> bool:
        return beat.lag > 0.0

    async def has_seen_it() -> bool:
        return beat.lag >= 0.1

    await _until(has_beaten)
    time.sleep(0.5)  # noqa: ASYNC251 - holds the loop up

    await _until(has_seen_it)
    assert [entry["event"] for entry in logged] == ["event loop stands still", "event loop stood still"]
    assert "holds the loop up" in logged[0]["stack"]
    assert logged[1]["seconds"] >= 0.1
