"""Guarantee: when the reaper dies, leases no longer end, and health says so instead of pretending."""

import pytest
import structlog
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health_aio

from statepool_server import app
from statepool_server.logs import configure_logging


class _DeadlyReaper:
    async def run(self) -> None:
        raise RuntimeError("planted")


async def test_death_of_the_reaper_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every service turns from serving to not serving, and the error is not swallowed."""
    configure_logging("error", "json")
    monkeypatch.setattr(app, "_log", structlog.get_logger())  # a logger of this test's own standard error
    health = health_aio.HealthServicer()
    names = ("", "statepool.v1.BlockService")
    for name in names:
        await health.set(name, health_pb2.HealthCheckResponse.SERVING)

    with pytest.raises(RuntimeError, match="planted"):
        await app.supervised(_DeadlyReaper().run(), health, "sessions no longer expire")

    for name in names:
        answer = await health.Check(health_pb2.HealthCheckRequest(service=name), None)
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
