"""Guarantee: a client that stands still is cut off in bounded time with a reason, and costs bounded memory."""

from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import grpc
import pytest

from service.conftest import plain_stubs
from service.raw import Stubs, busy_blocks, ref_of, refs, refusal_of
from service.servers import BLOCK_TOKENS, DEADLINE_SECONDS, Server, Servers, until
from service.test_schedule_stream import admission
from statepool import Client, Session, StreamStalledError
from statepool.v1 import admin_pb2, block_pb2, pool_pb2, session_pb2
from statepool.v1 import sequence_pb2 as pb

FLOOD = 5000
"""Requests whose answers are many times what a stream's window holds."""
WINDOW = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65535))
"""What a client says that it will take unread; by default gRPC lets it grow to megabytes."""


@pytest.fixture
def server(servers: Servers) -> Server:
    """Gives a server that is impatient."""
    return servers.shared("--stall-timeout", "500ms", "--blocks", "513")


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """Connects to it."""
    with server.client() as client:
        yield client
        until(lambda: client.get_pool().usage.busy_blocks == 0, "the pins to go")


@pytest.fixture
def session(client: Client) -> Iterator[Session]:
    """Opens a session on it."""
    with client.create_session(60.0) as session:
        yield session


@pytest.fixture
def stubs(server: Server) -> Iterator[Stubs]:
    """Connects to it over a connection that takes little unread."""
    with grpc.insecure_channel(server.target, options=WINDOW) as channel:
        yield Stubs(channel)


class Flood:
    """Requests of a stream, counted as they are taken."""

    def __init__(self, request: Any, first: Any = None) -> None:
        self.taken = 0
        self._first = first
        self._request = request

    def __iter__(self) -> Iterator[Any]:
        if self._first is not None:
            yield self._first
        for self.taken in range(1, FLOOD + 1):
            yield self._request


def _ended(server: Server, method: str) -> bool:
    """Tells whether the server has ended a call of a method for being unavailable."""
    with plain_stubs(server) as stubs:
        calls = stubs.admin.GetServerInfo(admin_pb2.GetServerInfoRequest()).calls
    return any(name.endswith(f"/{method}:UNAVAILABLE") for name in calls)


def _assert_cut_off(server: Server, method: str, call: Any) -> None:
    """Waits until the server has ended the call, while nothing is read; then reads why."""
    until(lambda: _ended(server, method), "the server to lose its patience")
    error = refusal_of(lambda: list(call))
    assert isinstance(error, StreamStalledError)
    assert "the reader stood still for 0.5 s" in error.message


def test_reader_of_keep_alives(server: Server, client: Client, stubs: Stubs) -> None:
    """Who asks for renewals and reads no answer is not asked any further, and then ended."""
    with client.create_session(60.0) as session:
        flood = Flood(session_pb2.KeepAliveRequest(sessions=[ref_of(session)] * 100))
        call = stubs.sessions.KeepAlive(iter(flood), timeout=DEADLINE_SECONDS)

        _assert_cut_off(server, "KeepAlive", call)

        assert flood.taken < FLOOD


def test_reader_of_outcomes(server: Server, client: Client, stubs: Stubs) -> None:
    """A scheduler that reads no outcome is ended; its session and its sequences are as they were."""
    with client.create_session(60.0) as session:
        step = admission(*range(1, 101))
        flood = Flood(pb.ScheduleRequest(step=step), first=pb.ScheduleRequest(open=ref_of(session)))
        call = stubs.sequences.Schedule(iter(flood), timeout=DEADLINE_SECONDS)

        _assert_cut_off(server, "Schedule", call)

        assert flood.taken < FLOOD
        assert stubs.sequences.Step(pb.StepRequest(session=ref_of(session), step=step)).outcome.usage.sequences == 100


def test_reader_of_blocks(server: Server, session: Session, stubs: Stubs) -> None:
    """A reader that stands still gives its pins back before anybody reads on."""
    blocks = session.allocate_blocks(512)
    call = stubs.blocks.ReadBlocks(block_pb2.ReadBlocksRequest(session=ref_of(session), blocks=refs(blocks)))
    with plain_stubs(server) as others:
        until(lambda: busy_blocks(others) == 0, "the pins to go")

    _assert_cut_off(server, "ReadBlocks", call)


def test_watcher(server: Server, client: Client, session: Session, stubs: Stubs) -> None:
    """A watcher that takes nothing is ended, and what it would be told goes on happening."""
    call = stubs.pool.WatchBlocks(pool_pb2.WatchBlocksRequest())
    next(call)
    tokens = [BLOCK_TOKENS] * 512
    for number in range(20):
        blocks = session.allocate_blocks(512, zero=False)
        hashes = [b"%d of %d" % (row, number) + bytes(48) for row in range(512)]
        session.commit_blocks(blocks, prefix_hashes=hashes, boundary_tokens=tokens, written_through_tokens=tokens)
        session.free_blocks(blocks)

    until(lambda: _ended(server, "WatchBlocks"), "the server to lose its patience")
    error = refusal_of(lambda: list(call))

    assert isinstance(error, StreamStalledError)
    assert "the watcher stood still for 0.5 s" in error.message


def test_scheduler_that_never_opens(stubs: Stubs) -> None:
    """A Schedule stream whose opening message never comes is ended."""
    never: SimpleQueue[pb.ScheduleRequest | None] = SimpleQueue()

    error = refusal_of(lambda: list(stubs.sequences.Schedule(iter(never.get, None), timeout=DEADLINE_SECONDS)))
    never.put(None)

    assert isinstance(error, StreamStalledError)
    assert "the writer stood still" in error.message
