"""Servers, clients and sessions for the tests of the service; nothing in them is mocked."""

import contextlib
from collections.abc import Generator, Iterator
from typing import Any

import grpc
import pytest

from service.raw import Stubs
from service.servers import CAPACITY, Server, Servers, fast_folder, until
from statepool import BlockState, Client
from statepool.sync.session import Session

_SERVERS = pytest.StashKey[list[Servers]]()


@pytest.fixture(scope="session")
def servers(request: pytest.FixtureRequest) -> Iterator[Servers]:
    """Starts servers with flags of a test's choice."""
    with fast_folder() as folder:
        started = Servers(folder)
        known = request.config.stash.setdefault(_SERVERS, [])
        known.append(started)
        ender = _Ender(started)
        request.config.pluginmanager.register(ender)
        try:
            yield started
        finally:
            request.config.pluginmanager.unregister(ender)
            known.remove(started)  # what fails from here on shows the logs itself: their folder goes
            started.stop()


class _Ender:
    """Ends servers with the tests that they were started for, wherever these are."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, None, None]:
        """Ends those of the test when its fixtures are gone, and with its module those that few others may want."""
        yield
        if nextitem is not None:  # else the session ends, and the fixture with it
            self._servers.end_of_test()
            if nextitem.path != item.path:
                self._servers.end_of_module()


@pytest.fixture
def server(servers: Servers) -> Iterator[Server]:
    """Gives the server that most tests share: two ranks, 16 blocks, conv layout SD, block_major.

    Proves that the test left no session behind and no block that cannot be had back.
    """
    shared = servers.shared()
    yield shared
    with shared.client() as client:
        empty(client)


@pytest.fixture
def tight(servers: Servers) -> Iterator[Server]:
    """Gives a server whose limits are soon reached, and proves that the test left nothing behind on it."""
    shared = servers.shared(
        *("--max-sessions", "3", "--max-replays", "2", "--max-waiting-allocations", "2", "--max-batch", "32"),
        *("--max-copy-specs", "64", "--max-ttl", "90s", "--stall-timeout", "200ms"),
    )
    with shared.client() as client:
        yield shared
        empty(client)


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """Connects to the server, and proves that the test left no block behind that cannot be had back."""
    with server.client() as client:
        yield client
        empty(client)


@pytest.fixture
def session(client: Client) -> Iterator[Session]:
    """Opens a session that no test outlives."""
    with client.create_session(60.0) as session:
        yield session


@pytest.fixture
def other(server: Server, client: Client) -> Iterator[Session]:
    """Opens the session of a stranger, over a connection of its own."""
    with server.client() as stranger, stranger.create_session(60.0) as session:
        yield session


@pytest.fixture
def stubs(server: Server) -> Iterator[Stubs]:
    """Connects to the shared server without the client library."""
    with plain_stubs(server) as stubs:
        yield stubs


@contextlib.contextmanager
def plain_stubs(server: Server) -> Iterator[Stubs]:
    """Connects to a server without the client library."""
    with grpc.insecure_channel(server.target) as channel:
        yield Stubs(channel)


def empty(client: Client) -> None:
    """Takes every committed block out of the index; then every block must be free."""
    until(lambda: client.get_pool().usage.sessions == 0, "the sessions of the test to end")
    with client.create_session(60.0) as session:
        for page in client.list_blocks(states=[BlockState.EVICTABLE]):
            session.evict_blocks(page.blocks)
    until(lambda: client.get_pool().usage.free_blocks == CAPACITY, "every block to be free")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Shows the ends of the servers' logs under a test that failed."""
    report = yield
    if report.failed:
        for servers in item.config.stash.get(_SERVERS, []):
            report.sections += [(f"log of {target}", log) for target, log in servers.log_ends()]
    return report
