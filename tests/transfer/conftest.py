"""Pairs of servers for the tests of transfers; nothing in them is mocked."""

import contextlib
from collections.abc import Iterator

import pytest

from service.conftest import empty, servers
from service.servers import CONV_ROWS, Server, Servers, until
from statepool import Client
from statepool.sync.session import Session

__all__ = ["servers"]

WIDE = (CONV_ROWS, 65536)
"""Shape of conv states that make the image of a block larger than a MiB: more than a stream holds unread."""
FLAGS = ("--num-spec", "2", "--max-chunk-bytes", "65536", "--stall-timeout", "5s")


@pytest.fixture
def source(servers: Servers) -> Server:
    """Gives the server that most transfers come from."""
    return servers.shared(*FLAGS, conv_shape=WIDE)


@pytest.fixture
def destination(servers: Servers) -> Server:
    """Gives the server that most transfers go to."""
    return servers.shared(*FLAGS, "--tp-ranks", "0,1", conv_shape=WIDE)


@contextlib.contextmanager
def leaving_nothing(server: Server) -> Iterator[Client]:
    """Connects to a server, and proves that no transfer, pin or block is left on it."""
    with server.client() as client:
        yield client
        until(lambda: not list(client.list_transfers()), "the transfers to end")
        empty(client)


@pytest.fixture
def here(source: Server) -> Iterator[Client]:
    """Connects to the source."""
    with leaving_nothing(source) as client:
        yield client


@pytest.fixture
def there(destination: Server) -> Iterator[Client]:
    """Connects to the destination."""
    with leaving_nothing(destination) as client:
        yield client


@pytest.fixture
def lender(here: Client) -> Iterator[Session]:
    """Opens a session at the source."""
    with here.create_session(60.0) as session:
        yield session


@pytest.fixture
def taker(there: Client) -> Iterator[Session]:
    """Opens a session at the destination."""
    with there.create_session(60.0) as session:
        yield session
