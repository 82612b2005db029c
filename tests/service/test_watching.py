"""Guarantee: who applies what a watch tells knows what can be found; what it is not told, it is told of."""

import contextlib
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from service.conftest import plain_stubs
from service.proxy import between
from service.raw import Stubs, refusal_of
from service.servers import BLOCK_TOKENS, DEADLINE_SECONDS, Server, Servers, until
from service.test_stalls import WINDOW
from statepool import (
    AsyncClient,
    BadFieldError,
    BlockRefs,
    BlockState,
    CancelledError,
    ChangeKind,
    Client,
    DrainingError,
    EventCursorCompactedError,
    IncarnationMismatchError,
    QuotaExceededError,
    Session,
    UnavailableError,
    WatchCursor,
    rpc,
)
from statepool.calls import watching
from statepool.v1 import pool_pb2
from support.watched import Watched, Watching, listed

BLOCKS = 2049
HASH_BYTES = 64
KEPT_BYTES = 256 * 1024
"""What the small server keeps of its changes: a small part of what the floods bring about."""


@pytest.fixture
def small(servers: Servers) -> Iterator[Server]:
    """Gives a server that keeps few changes, for two watchers at most."""
    server = servers.shared(
        *("--blocks", str(BLOCKS), "--watch-bytes", str(KEPT_BYTES), "--max-watchers", "2", "--stall-timeout", "60s"),
        *("--max-replays", "2"),
    )
    with server.client() as client:
        yield server
        until(lambda: not int(_metric(client, "statepool_watchers")), "the watchers to go")
        with client.create_session(60.0) as session:
            for page in client.list_blocks(states=[BlockState.EVICTABLE]):
                session.evict_blocks(page.blocks)


def _metric(client: Client, name: str) -> float:
    return next(sample.value for sample in client.get_metrics().samples if sample.name == name)


def _commit(session: Session, blocks: BlockRefs, hashes: list[bytes], namespace: str = "") -> None:
    tokens = [BLOCK_TOKENS] * len(blocks)
    session.commit_blocks(
        blocks, prefix_hashes=hashes, boundary_tokens=tokens, written_through_tokens=tokens, namespace=namespace
    )


TELLING_SECONDS = 0.03
"""What comes and goes within a few milliseconds is not told at all."""


def _flood(session: Session, rounds: int) -> None:
    """Makes all blocks findable by new hashes, round after round; the last round's stay so."""
    for number in range(rounds):
        blocks = session.allocate_blocks(BLOCKS - 1, zero=False)
        _commit(session, blocks, [b"%d/%d" % (number, row) + bytes(HASH_BYTES - 16) for row in range(len(blocks))])
        session.free_blocks(blocks)
        time.sleep(TELLING_SECONDS)


def _trouble(client: Client, seed: int, acts: int) -> None:
    """Does at random what makes blocks findable, and not findable any more."""
    chance = random.Random(seed)
    with client.create_session(60.0) as session:
        for _ in range(acts):
            act = chance.randrange(4)
            count = chance.randrange(1, 4)
            hashes = [b"hash %d" % number for number in chance.sample(range(8), count)]
            namespace = chance.choice(["m", "n"])
            if act < 2:
                blocks = session.allocate_blocks(count, max_wait=DEADLINE_SECONDS)
                _commit(session, blocks, hashes, namespace)
                session.free_blocks(blocks)
            elif act == 2:
                session.evict_blocks(prefix_hashes=hashes, namespace=namespace)
            else:
                hit = session.lookup_prefix(hashes, namespace=namespace)
                if hit is not None:
                    session.free_blocks(hit.block)


@pytest.mark.parametrize("seed", range(6))
def test_snapshot_and_events_are_what_can_be_found(server: Server, client: Client, seed: int) -> None:
    """Watchers that came before, and in the midst of, random traffic of several clients know what a listing tells."""
    with server.client() as first, server.client() as second:
        early = Watching(first)
        threads = [threading.Thread(target=_trouble, args=(client, 10 * seed + n, 60)) for n in range(3)]
        for thread in threads:
            thread.start()
        late = Watching(second)
        for thread in threads:
            thread.join()

        expected = listed(client)
        for watching_ in (early, late):
            watching_.until_knows(expected)
        assert early.known.names == late.known.names
        _assert_namespaces(client, early.known)


def _assert_namespaces(client: Client, known: Watched) -> None:
    with client.create_session(60.0) as session:
        for generation, namespace, value in known.names.values():
            hit = session.lookup_prefix([value], namespace=namespace)
            assert hit is not None
            assert hit.block.generations.tolist() == [generation]


async def test_async_client(server: Server, session: Session) -> None:
    """The client for asyncio yields the same."""
    from statepool import AsyncClient

    blocks = session.allocate_blocks(2)
    _commit(session, blocks[:1], [b"before"])
    known = Watched()
    async with AsyncClient(server.target) as client:
        async for changes in client.watch_blocks():
            known.apply(changes)
            if changes.kind is ChangeKind.SNAPSHOT:
                _commit(session, blocks[1:], [b"after"])
            elif changes.kind is ChangeKind.EVENTS:
                break

    assert {value for _, _, value in known.names.values()} == {b"before", b"after"}


def test_a_word_comes_while_nothing_changes(client: Client) -> None:
    """Progress marks tell that nothing has changed since."""
    watch = client.watch_blocks(timeout=3.0)
    snapshot = next(watch)
    marks = [next(watch) for _ in range(2)]
    watch.close()

    assert [mark.kind for mark in marks] == [ChangeKind.PROGRESS] * 2
    assert {mark.cursor for mark in marks} == {snapshot.cursor}


def test_resumes_after_a_cut(server: Server, client: Client, session: Session, tmp_path: Path) -> None:
    """Behind its cursor a watch goes on without a snapshot, gap or repetition, though nobody has watched meanwhile."""
    with between(tmp_path, server.socket) as proxy, Client(proxy.target) as cut:
        blocks = session.allocate_blocks(6)
        before = Watching(cut)
        _commit(session, blocks[:2], [b"a", b"b"])
        before.until_knows(listed(client))

        proxy.cut()
        before.join(DEADLINE_SECONDS)
        assert isinstance(before.error, UnavailableError)
        _commit(session, blocks[2:4], [b"c", b"d"])
        session.evict_blocks(prefix_hashes=[b"a", b"d"])
        after = Watching(cut, before.known.cursor, before.known)
        _commit(session, blocks[4:], [b"e", b"f"])
        after.until_knows(listed(client))

    assert after.known.snapshots == 1
    assert not after.known.losses


def test_a_restart_is_told(servers: Servers) -> None:
    """A cursor is of one server process; the next one tells a snapshot of what it has recovered."""
    server = servers.start().wait_until_ready()
    with server.client() as client, client.create_session(60.0, resume_within=60.0) as session:
        watching_ = Watching(client)
        _commit(session, session.allocate_blocks(2), [b"a", b"b"])
        watching_.until_knows(listed(client))
        server.kill()
        watching_.join(DEADLINE_SECONDS)
        server.start()
        server.wait_until_ready()

        with pytest.raises(IncarnationMismatchError):
            next(client.watch_blocks(watching_.known.cursor))
        again = Watching(client)
        again.until_knows({block: row for block, row in listed(client).items() if row[1] in (b"a", b"b")})


def test_a_reader_that_lags_is_told(small: Server) -> None:
    """Who reads too slowly is told that something was lost, gets another snapshot, and then knows everything."""
    with small.client() as client, grpc.insecure_channel(small.target, options=WINDOW) as channel:
        stream = Stubs(channel).pool.WatchBlocks(pool_pb2.WatchBlocksRequest(), timeout=DEADLINE_SECONDS)
        known = Watched()
        _take(stream, known)
        with client.create_session(60.0) as session:
            _flood(session, 12)
        until(lambda: _metric(client, "statepool_watch_lag_seconds") > 0.2, "the watcher to lag")
        expected = listed(client)
        while known.plain != expected:
            _take(stream, known)
        stream.cancel()

        assert known.losses
        assert known.snapshots > 1
        assert _metric(client, "statepool_watch_losses_total") >= 1


def _take(stream: Any, known: Watched) -> None:
    known.fold(watching.block_changes(next(stream)))


def _private_bytes(process: psutil.Process) -> int:
    memory = process.memory_info()
    return int(memory.rss - memory.shared)  # the journal and the arenas are shared


def test_memory_is_bounded(small: Server) -> None:
    """A watcher that takes nothing costs what the server keeps anyway, however much happens."""
    process = psutil.Process(small.process.pid)
    with small.client() as client, grpc.insecure_channel(small.target, options=WINDOW) as channel:
        streams = [Stubs(channel).pool.WatchBlocks(pool_pb2.WatchBlocksRequest()) for _ in range(2)]
        for stream in streams:
            next(stream)
        with client.create_session(60.0) as session:
            _flood(session, 10)
            before = _private_bytes(process)
            _flood(session, 60)
            grown = _private_bytes(process) - before
        told = 60 * (BLOCKS - 1) * HASH_BYTES
        kept = _metric(client, "statepool_watch_kept_bytes")
        for stream in streams:
            stream.cancel()

    assert kept <= 2 * KEPT_BYTES
    assert grown < told / 4


def test_a_cursor_that_lags_is_refused(small: Server) -> None:
    """Who comes back too late is told that it must begin with a snapshot."""
    with small.client() as client, client.create_session(60.0) as session:
        watch = client.watch_blocks()
        cursor = next(watch).cursor
        watch.close()
        _flood(session, 4)

        with pytest.raises(EventCursorCompactedError):
            next(client.watch_blocks(cursor))


def test_bad_cursors(client: Client) -> None:
    """A cursor that cannot be is refused, and says why."""
    watch = client.watch_blocks()
    cursor = next(watch).cursor
    watch.close()
    assert cursor is not None

    with pytest.raises(BadFieldError, match="yet to come") as caught:
        next(client.watch_blocks(WatchCursor(cursor.incarnation, cursor.sequence + 1000)))
    assert caught.value.field == "cursor.sequence"
    with pytest.raises(IncarnationMismatchError):
        next(client.watch_blocks(WatchCursor(cursor.incarnation ^ 1, cursor.sequence)))


def test_watchers_are_limited(small: Server) -> None:
    """One watcher more than may be is refused, until one is gone."""
    with small.client() as client:
        watches = [client.watch_blocks() for _ in range(2)]
        for watch in watches:
            next(watch)

        with pytest.raises(QuotaExceededError):
            next(client.watch_blocks())
        watches.pop().close()
        until(lambda: _metric(client, "statepool_watchers") == 1, "the watcher to be gone")
        watches.append(client.watch_blocks())
        next(watches[-1])
        for watch in watches:
            watch.close()


def test_a_stopping_server_ends_its_watches(servers: Servers) -> None:
    """Watchers hold no server up, and learn why they end."""
    server = servers.start().wait_until_ready()
    with server.client() as client:
        watch = client.watch_blocks()
        next(watch)
        server.terminate()

        with pytest.raises(DrainingError):
            list(watch)
    assert server.wait() == 0


def test_a_server_that_stops_while_watches_open(servers: Servers) -> None:
    """A watch that has just begun, or is about to, holds no server up either."""
    server = servers.start().wait_until_ready()
    with plain_stubs(server) as stubs:
        watches = [stubs.pool.WatchBlocks(pool_pb2.WatchBlocksRequest()) for _ in range(60)]
        next(watches[0])
        server.terminate()

        ends = [refusal_of(partial(list, watch)) for watch in watches]

    assert {type(end) for end in ends} <= {DrainingError, CancelledError}
    assert server.wait() == 0


def _tell_and_end(
    request: pool_pb2.WatchBlocksRequest, context: grpc.ServicerContext
) -> Iterator[pool_pb2.WatchBlocksResponse]:
    nothing = pool_pb2.BlockChanges(kind=pool_pb2.BlockChanges.KIND_SNAPSHOT, is_first=True, is_last=True)
    yield pool_pb2.WatchBlocksResponse(incarnation=7, changes=[nothing])


@contextlib.contextmanager
def ending() -> Iterator[str]:
    """Runs a server that ends each watch when it has told all that there is; gives its address."""
    with ThreadPoolExecutor(2) as executor:
        server = grpc.server(executor)
        handler = grpc.unary_stream_rpc_method_handler(
            _tell_and_end,
            pool_pb2.WatchBlocksRequest.FromString,
            pool_pb2.WatchBlocksResponse.SerializeToString,
        )
        service = grpc.method_handlers_generic_handler(rpc.WATCH_BLOCKS.service, {rpc.WATCH_BLOCKS.name: handler})
        server.add_generic_rpc_handlers((service,))
        port = server.add_insecure_port("localhost:0")
        server.start()
        try:
            yield f"localhost:{port}"
        finally:
            server.stop(None).wait()


async def test_a_watch_that_ends_in_good_order() -> None:
    """No server of ours does that; it is gone on with as if the connection had been lost."""
    with ending() as target:
        with Client(target) as client:
            watch = client.watch_blocks()
            assert next(watch).kind is ChangeKind.SNAPSHOT
            with pytest.raises(UnavailableError, match="the server ended the stream"):
                next(watch)
        async with AsyncClient(target) as aio:
            aio_watch = aio.watch_blocks()
            assert (await anext(aio_watch)).kind is ChangeKind.SNAPSHOT
            with pytest.raises(UnavailableError, match="the server ended the stream"):
                await anext(aio_watch)


def test_silence_ends_a_watch(server: Server, tmp_path: Path) -> None:
    """Who hears nothing from a connection that looks alive gives it up."""
    with between(tmp_path, server.socket) as proxy, Client(proxy.target) as client:
        watch = client.watch_blocks(timeout=1.5)
        next(watch)
        proxy.stall(DEADLINE_SECONDS)

        with pytest.raises(UnavailableError, match=r"nothing was heard for 1\.5 s"):
            list(watch)


def test_malformed_cursor_bytes(small: Server) -> None:
    """A request that is no message is refused before anything is told."""
    with grpc.insecure_channel(small.target) as channel:
        call: Any = channel.unary_stream("/statepool.v1.PoolService/WatchBlocks")

        assert isinstance(refusal_of(lambda: list(call(b"\xff", timeout=DEADLINE_SECONDS))), BadFieldError)
