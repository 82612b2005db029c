"""Servers that trace, and what they export; nothing in it is mocked."""

from collections.abc import Iterator

import pytest

from service.conftest import servers
from service.servers import Server, Servers
from tracing.receiver import Receiver

__all__ = ["servers"]


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    """Starts a collector."""
    receiver = Receiver()
    yield receiver
    receiver.stop()


@pytest.fixture(scope="module")
def server(servers: Servers, receiver: Receiver) -> Iterator[Server]:
    """Gives a server that exports to the collector, every tenth of a second."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        yield servers.shared("--tracing", "otlp", "--log-level", "debug").wait_until_ready()
