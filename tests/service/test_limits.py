"""Guarantee: too much is refused at once, before it costs anything; what gives back or keeps alive gets through."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from service.raw import OpenKeepAlive, Stubs, ref_of, refs, refusal_of
from service.servers import CAPACITY, DEADLINE_SECONDS, Server, Servers, until
from statepool import Client, OverloadedError, PoolExhaustedError, Session, StatepoolError
from statepool.channel import error_of_rpc
from statepool.v1 import admin_pb2, block_pb2, pool_pb2, session_pb2

LONG = Duration(seconds=600)


@pytest.fixture
def server(servers: Servers) -> Server:
    """Gives a server on which three calls may be under way, two of them of one session."""
    return servers.shared("--max-calls", "3", "--max-session-calls", "2")


@pytest.fixture
def owner(client: Client) -> Iterator[Session]:
    """Opens the session that holds every block, so that others have to wait."""
    with client.create_session(60.0) as owner:
        owner.allocate_blocks(CAPACITY)
        yield owner


@pytest.fixture
def wait(stubs: Stubs) -> Iterator[Callable[[Session], Any]]:
    """Starts calls that wait for a block, and so stay under way."""
    calls: list[Any] = []

    def start(session: Session) -> None:
        before = _under_way(stubs)
        request = block_pb2.AllocateBlocksRequest(session=ref_of(session), count=1, max_wait=LONG)
        calls.append(stubs.blocks.AllocateBlocks.future(request))
        until(lambda: _under_way(stubs) == before + 1, "the call to wait")

    yield start
    for call in calls:
        call.cancel()
    until(lambda: _under_way(stubs) == 0, "the calls to end")


def _under_way(stubs: Stubs) -> int:
    """Counts the calls that wait for blocks; the question is itself refused when there are three."""
    with contextlib.suppress(grpc.RpcError):
        return stubs.pool.GetPool(pool_pb2.GetPoolRequest()).pool.usage.waiting_allocations
    return 3


def _get_pool(stubs: Stubs) -> StatepoolError:
    return refusal_of(lambda: stubs.pool.GetPool(pool_pb2.GetPoolRequest()))


def test_calls_of_everybody(
    server: Server, client: Client, owner: Session, session: Session, stubs: Stubs, wait: Callable[[Session], Any]
) -> None:
    """With as many calls under way as may be, others are OVERLOADED, undecoded; leases and frees are not."""
    leases = OpenKeepAlive(stubs)
    with client.create_session(60.0) as doomed:
        for waiting in (session, session, doomed):
            wait(waiting)

        error = _get_pool(stubs)
        with grpc.insecure_channel(server.target) as channel:
            method: Any = channel.unary_unary("/statepool.v1.PoolService/GetPool")
            garbage = refusal_of(lambda: method(b"\xff\xff\xff"))

        assert isinstance(error, OverloadedError)
        assert error.retry_after is not None
        assert isinstance(garbage, OverloadedError)
        assert not leases.renew(ref_of(session)).HasField("error")
        assert stubs.admin.GetServerInfo(admin_pb2.GetServerInfoRequest()).pid
        stubs.sessions.DeleteSession(session_pb2.DeleteSessionRequest(session=ref_of(doomed)))
        assert stubs.pool.GetPool(pool_pb2.GetPoolRequest()).pool.usage.sessions == 2


def test_calls_of_one_session(
    owner: Session, session: Session, stubs: Stubs, wait: Callable[[Session], Any], client: Client
) -> None:
    """A session with as many calls under way as it may have is refused more, but for frees; others are not."""
    blocks = client.list_blocks(session_id=owner.session_id)
    held = next(iter(blocks)).blocks
    for _ in range(2):
        wait(owner)

    retain = block_pb2.RetainBlocksRequest(session=ref_of(owner), blocks=refs(held[:1]))
    error = refusal_of(lambda: stubs.blocks.RetainBlocks(retain))
    header = block_pb2.WriteBlocksRequest(
        header=block_pb2.WriteBlocksHeader(session=ref_of(owner), blocks=refs(held[:1]))
    )
    write = refusal_of(lambda: stubs.blocks.WriteBlocks(iter([header])))

    assert isinstance(error, OverloadedError)
    assert isinstance(write, OverloadedError)
    assert (error.field, error.retry_after is not None) == ("session", True)
    stubs.blocks.LookupPrefix(block_pb2.LookupPrefixRequest(session=ref_of(session), prefix_hashes=[b"none"]))
    stubs.blocks.FreeBlocks(block_pb2.FreeBlocksRequest(session=ref_of(owner), blocks=refs(held[:2])))


def test_hint_of_an_exhausted_pool(client: Client, session: Session, stubs: Stubs) -> None:
    """The hint is proportional to the blocks that are missing, at the rate at which blocks came back just before."""
    for _ in range(40):
        session.free_blocks(session.allocate_blocks(CAPACITY, zero=False))
    session.allocate_blocks(CAPACITY)

    def refused(count: int) -> float:
        request = block_pb2.AllocateBlocksRequest(session=ref_of(session), count=count)
        error = refusal_of(lambda: stubs.blocks.AllocateBlocks(request))
        assert isinstance(error, PoolExhaustedError)
        assert error.retry_after is not None
        return error.retry_after

    few, many = refused(1), refused(CAPACITY)

    assert few <= many < DEADLINE_SECONDS


def test_connections(servers: Servers) -> None:
    """One connection more than may be is closed as it comes, and may come in when another has gone."""
    server = servers.shared("--max-connections", "2")
    local = (("grpc.use_local_subchannel_pool", 1),)
    with contextlib.ExitStack() as stack:
        channels = [stack.enter_context(grpc.insecure_channel(server.target, options=local)) for _ in range(3)]
        first, second, third = map(Stubs, channels)
        request = pool_pb2.GetPoolRequest()
        for stubs in (first, second):
            stubs.pool.GetPool(request, wait_for_ready=True, timeout=DEADLINE_SECONDS)

        with pytest.raises(grpc.RpcError) as caught:
            third.pool.GetPool(request, timeout=DEADLINE_SECONDS)
        channels[0].close()
        third.pool.GetPool(request, wait_for_ready=True, timeout=DEADLINE_SECONDS)
        second.pool.GetPool(request, timeout=DEADLINE_SECONDS)

    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_metadata(client: Client, stubs: Stubs) -> None:
    """Metadata of more than a few KiB is refused by the transport, and hurts nobody else."""
    with pytest.raises(grpc.RpcError) as caught:
        stubs.pool.GetPool(pool_pb2.GetPoolRequest(), metadata=(("large", "x" * 100_000),), timeout=DEADLINE_SECONDS)

    assert error_of_rpc(caught.value).code.name == "RESOURCE_EXHAUSTED"
    assert client.get_pool().capacity == CAPACITY
