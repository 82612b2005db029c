"""Guarantee: a directory knows what each of its servers has, and how old that is, whatever becomes of servers."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from pathlib import Path

import pytest

from service.proxy import between
from service.servers import BLOCK_TOKENS, DEADLINE_SECONDS, Server, Servers, until
from service.test_watching import ending
from statepool import (
    AsyncClient,
    BlockChanges,
    Client,
    DeadlineExceededError,
    IncarnationMismatchError,
    Session,
    UnavailableError,
)
from statepool.disagg import AsyncPrefixDirectory, DirectoryHit, PrefixDirectory

HASHES = [b"1", b"2", b"3"]
FAR_AWAY = "far.example:50051"


@pytest.fixture
def two(servers: Servers) -> list[Server]:
    """Gives two servers, to do with as a test likes."""
    started = [servers.start(), servers.start()]
    return [server.wait_until_ready() for server in started]


@pytest.fixture
def pair(two: list[Server]) -> Iterator[list[Session]]:
    """Opens a session on each."""
    with two[0].client() as a, two[1].client() as b:
        yield [a.create_session(60.0, resume_within=60.0), b.create_session(60.0, resume_within=60.0)]


def _commit(session: Session, *hashes: bytes, namespace: str = "") -> None:
    blocks = session.allocate_blocks(len(hashes))
    tokens = [BLOCK_TOKENS] * len(hashes)
    session.commit_blocks(
        blocks, prefix_hashes=hashes, boundary_tokens=tokens, written_through_tokens=tokens, namespace=namespace
    )
    session.free_blocks(blocks)


def _places(hits: list[DirectoryHit]) -> list[tuple[str, int, bytes]]:
    return [(hit.server, hit.hash_index, hit.prefix_hash) for hit in hits]


def test_the_deepest_of_each_server(two: list[Server], pair: list[Session]) -> None:
    """A lookup finds the deepest prefix of each server, the deepest of all first, in its namespace only."""
    a, b = (server.target for server in two)
    _commit(pair[0], b"1")
    with PrefixDirectory([a, b]) as directory:
        directory.wait_until_current(DEADLINE_SECONDS)
        assert _places(directory.lookup(HASHES)) == [(a, 0, b"1")]

        _commit(pair[1], b"1", b"2")
        _commit(pair[0], b"3", namespace="other")
        until(lambda: len(directory.lookup(HASHES, namespace="other")) == 1, "the news")
        until(lambda: _places(directory.lookup(HASHES)) == [(b, 1, b"2"), (a, 0, b"1")], "the news")
        pair[1].evict_blocks(prefix_hashes=[b"2"])
        until(lambda: {hit.hash_index for hit in directory.lookup(HASHES)} == {0}, "the eviction")

        assert directory.lookup([b"none"]) == []
        assert {target: facts.prefix_count for target, facts in directory.servers.items()} == {a: 2, b: 1}
        assert all(hit.staleness < 5.0 for hit in directory.lookup(HASHES))


def test_a_killed_server_grows_stale_and_comes_back(two: list[Server], pair: list[Session]) -> None:
    """What a dead server had is found until it is too old; the other is as it was; a restarted one is known anew."""
    a, b = (server.target for server in two)
    _commit(pair[0], b"1")
    _commit(pair[1], b"1", b"2")
    with PrefixDirectory([a, b]) as directory:
        directory.wait_until_current(DEADLINE_SECONDS)
        cursor = directory.servers[b].cursor
        two[1].kill()
        until(lambda: not directory.is_current, "the death to be noticed")

        assert _places(directory.lookup(HASHES, max_staleness=60.0)) == [(b, 1, b"2"), (a, 0, b"1")]
        assert isinstance(directory.servers[b].error, UnavailableError)
        until(lambda: _places(directory.lookup(HASHES, max_staleness=2.0)) == [(a, 0, b"1")], "it to be too old")
        with pytest.raises(DeadlineExceededError, match="not current"):
            directory.wait_until_current(0.01)

        two[1].start()
        _commit(pair[1], b"3")
        until(lambda: (b, 2, b"3") in _places(directory.lookup(HASHES, max_staleness=2.0)), "it to be known again")
        now = directory.servers[b].cursor
        assert cursor is not None
        assert now is not None
        assert now.incarnation != cursor.incarnation
        assert directory.servers[a].is_current


def test_a_cut_watch_goes_on(two: list[Server], pair: list[Session], tmp_path: Path) -> None:
    """A connection that is cut again and again loses nothing."""
    with between(tmp_path, two[0].socket) as proxy, PrefixDirectory([proxy.target]) as directory:
        directory.wait_until_current(DEADLINE_SECONDS)
        for number in range(5):
            proxy.cut()
            _commit(pair[0], b"hash %d" % number)
            until(lambda last=b"hash %d" % number: bool(directory.lookup([last])), "the news")  # type: ignore[misc]

        facts = directory.servers[proxy.target]
        assert facts.prefix_count == 5
        assert not isinstance(facts.error, IncarnationMismatchError)


def test_servers_come_and_go(two: list[Server], pair: list[Session]) -> None:
    """Servers are added and removed while it is open, also ones that do not exist."""
    a, b = (server.target for server in two)
    _commit(pair[1], b"1")
    with PrefixDirectory([a]) as directory:
        directory.add(b)
        directory.add(b)
        directory.wait_until_current(DEADLINE_SECONDS)
        assert _places(directory.lookup(HASHES)) == [(b, 0, b"1")]
        directory.remove(b)
        assert directory.lookup(HASHES) == []
        directory.add(f"{b}.not")
        until(lambda: directory.servers[f"{b}.not"].error is not None, "the failure")
        assert not directory.is_current
        assert directory.servers[f"{b}.not"].staleness is None
    assert directory.servers == {}


async def test_asyncio(two: list[Server]) -> None:
    """The directory for asyncio does the same, and survives a kill as well."""
    a, b = (server.target for server in two)
    async with AsyncClient(b, timeout=DEADLINE_SECONDS) as client, AsyncPrefixDirectory([a]) as directory:
        directory.add(b)
        await directory.wait_until_current(DEADLINE_SECONDS)
        two[1].kill()
        await _until(lambda: not directory.is_current)
        with pytest.raises(DeadlineExceededError, match="not current"):
            await directory.wait_until_current(0.01)
        two[1].start()
        two[1].wait_until_ready()
        async with await client.create_session(60.0) as session:
            blocks = await session.allocate_blocks(1)
            await session.commit_blocks(
                blocks,
                prefix_hashes=[b"2"],
                boundary_tokens=[BLOCK_TOKENS],
                written_through_tokens=[BLOCK_TOKENS],
            )
            await _until(lambda: bool(directory.lookup(HASHES)))
        assert _places(directory.lookup(HASHES)) == [(b, 1, b"2")]
        await directory.remove(a)
        assert list(directory.servers) == [b]


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not condition():  # noqa: ASYNC110 - a directory tells of nothing but that it is current
            await asyncio.sleep(0.01)


async def test_a_watch_that_ends_in_good_order() -> None:
    """It is opened again, and until then the server is not known as it is."""
    with ending() as target:
        with PrefixDirectory([target]) as directory:
            until(lambda: isinstance(directory.servers[target].error, UnavailableError), "the end")
            directory.wait_until_current(DEADLINE_SECONDS)
        async with AsyncPrefixDirectory([target]) as following:
            await _until(lambda: isinstance(following.servers[target].error, UnavailableError))
            await following.wait_until_current(DEADLINE_SECONDS)


class _Broken(Client):
    """A client with a mistake in it."""

    def watch_blocks(self, *_: object, **__: object) -> Generator[BlockChanges, None, None]:
        """Fails."""
        raise ZeroDivisionError


class _AsyncBroken(AsyncClient):
    """A client with a mistake in it."""

    async def watch_blocks(self, *_: object, **__: object) -> AsyncGenerator[BlockChanges, None]:
        """Fails."""
        for changes in list[BlockChanges]():
            yield changes
        raise ZeroDivisionError


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_follower_that_dies(two: list[Server]) -> None:
    """What nobody has foreseen is told; the server does not pass for known."""
    target = two[0].target
    with PrefixDirectory([target], connect=_Broken) as directory:
        until(lambda: directory.servers[target].error is not None, "the end of the follower")
        assert "ZeroDivisionError" in str(directory.servers[target].error)
        assert not directory.is_current
    async with AsyncPrefixDirectory([target], connect=_AsyncBroken) as following:
        await _until(lambda: following.servers[target].error is not None)
        assert "ZeroDivisionError" in str(following.servers[target].error)
        assert not following.is_current


def test_a_connection_of_the_callers_choice(two: list[Server]) -> None:
    """Clients are made as the caller says, and closed with the directory."""
    made: list[Client] = []

    def connect(target: str) -> Client:
        made.append(Client(target, timeout=1.25))
        return made[-1]

    with PrefixDirectory([two[0].target], connect=connect) as directory:
        directory.wait_until_current(DEADLINE_SECONDS)

    assert len(made) == 1
    with pytest.raises(RuntimeError, match="closed"):
        made[0].get_pool()


async def test_a_server_that_cannot_be_connected_to(two: list[Server]) -> None:
    """It is told at once, by both directories, and nobody is followed behind the caller's back."""
    with pytest.raises(ValueError, match="insecure=True"):
        PrefixDirectory([two[0].target, FAR_AWAY])
    with pytest.raises(ValueError, match="insecure=True"):
        AsyncPrefixDirectory([two[0].target, FAR_AWAY])

    assert not [thread for thread in threading.enumerate() if thread.name.endswith(two[0].target)]
    assert asyncio.all_tasks() == {asyncio.current_task()}
    with PrefixDirectory([two[0].target]) as directory, pytest.raises(ValueError, match="insecure=True"):
        directory.add(FAR_AWAY)
    async with AsyncPrefixDirectory([two[0].target]) as following:
        with pytest.raises(ValueError, match="insecure=True"):
            following.add(FAR_AWAY)
        assert list(following.servers) == [two[0].target]
