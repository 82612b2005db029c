"""Pairs of servers for the tests of transfers; nothing in them is mocked."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

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


STANDING_COPY = {"STATEPOOL_FAILPOINTS": "copy=2+1*sleep(1500)"}
"""Has the third work of a server's memory, which `copying` begins, stand still for a while."""


@contextlib.contextmanager
def copying(server: Server, told: str = "") -> Iterator[None]:
    """Has a server that was started with `STANDING_COPY` copy a block meanwhile.

    Args:
        server: The server.
        told: What its log says before the copy counts as begun.
    """
    with server.client() as client, client.create_session(60.0) as session, ThreadPoolExecutor(1) as executor:
        src, dst = (session.allocate_blocks(1) for _ in range(2))
        copy = executor.submit(session.copy_blocks, src=src, dst=dst)
        until(lambda: client.get_pool().usage.busy_blocks == 2 and told in server.log, "the copy to stand still")
        yield
        copy.result()


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
