"""Servers, clients and attached processes for the tests of attachments; nothing in them is mocked."""

from collections.abc import Iterator

import pytest

from attach.workers import Workers
from service.conftest import client, server, servers, session
from service.servers import Server, Servers

__all__ = ["client", "lone", "server", "servers", "session", "workers"]


@pytest.fixture
def workers() -> Iterator[Workers]:
    """Starts processes that attach, and ends them."""
    with Workers() as workers:
        yield workers


@pytest.fixture
def lone(servers: Servers) -> Server:
    """Starts a server that a test may do to what it likes."""
    return servers.start().wait_until_ready()
