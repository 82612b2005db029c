"""Guarantee: a copy that stands still makes health NOT_SERVING and nobody wait, keeps its pins, and loses nothing."""

import contextlib
import time
from collections.abc import Iterator

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.conftest import plain_stubs
from service.raw import Stubs, refusal_of
from service.servers import DEADLINE_SECONDS, Server, Servers, until
from statepool import (
    Admission,
    Client,
    CopiesStalledError,
    DeadlineExceededError,
    Schedules,
    StateLostError,
    UnavailableError,
)
from statepool.v1 import block_pb2 as pb
from statepool.v1 import pool_pb2, session_pb2, types_pb2
from statepool_server.app import EXIT_STUCK
from statepool_server.failpoints import VARIABLE

SERVICES = ["", *(f"statepool.v1.{name}Service" for name in ("Admin", "Block", "Pool", "Sequence", "Session"))]


@contextlib.contextmanager
def stalling(servers: Servers, milliseconds: int, skip: int = 0) -> Iterator[Server]:
    """Runs a server one of whose copies will stand still."""
    server = servers.start(
        *("--copy-stall-timeout", "200ms", "--drain-timeout", "500ms"),
        environment={VARIABLE: f"copy={skip}+1*sleep({milliseconds})"},
    )
    yield server.wait_until_ready()


def serving(server: Server) -> set[bool]:
    """Asks for the health of everything."""
    with grpc.insecure_channel(server.target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answers = [stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=5.0) for name in SERVICES]
    return {answer.status == health_pb2.HealthCheckResponse.SERVING for answer in answers}


def opened(stubs: Stubs) -> types_pb2.SessionRef:
    """Opens a session without a client that would repeat calls."""
    return stubs.sessions.CreateSession(session_pb2.CreateSessionRequest(ttl=Duration(seconds=60))).session.ref


def usage(stubs: Stubs) -> pool_pb2.PoolUsage:
    """Counts blocks."""
    return stubs.pool.GetPool(pool_pb2.GetPoolRequest()).pool.usage


def allocation(session: types_pb2.SessionRef, request_id: str, count: int) -> pb.AllocateBlocksRequest:
    """Writes a request that zeroes blocks."""
    return pb.AllocateBlocksRequest(session=session, request_id=request_id, count=count)


def test_a_call_whose_zeroing_stands_still(servers: Servers) -> None:
    """It is refused in time, as is new work; the same request gets its blocks when the work has ended."""
    with stalling(servers, 6000) as server, plain_stubs(server) as stubs:
        session = opened(stubs)
        stuck = refusal_of(lambda: stubs.blocks.AllocateBlocks(allocation(session, "a", 2), timeout=DEADLINE_SECONDS))
        counts, health = usage(stubs), serving(server)
        started = time.monotonic()
        refused = refusal_of(lambda: stubs.blocks.AllocateBlocks(allocation(session, "b", 1)))
        again = refusal_of(lambda: stubs.blocks.AllocateBlocks(allocation(session, "a", 2)))
        unzeroed = stubs.blocks.AllocateBlocks(pb.AllocateBlocksRequest(session=session, count=1, zero=False))
        elapsed = time.monotonic() - started

        until(lambda: serving(server) == {True}, "health to be good again")
        answer = stubs.blocks.AllocateBlocks(allocation(session, "a", 2))
        after = usage(stubs)
        stubs.blocks.AllocateBlocks(allocation(session, "b", 1))

    for error in (stuck, refused, again):
        assert isinstance(error, CopiesStalledError)
        assert error.retry_after
    assert health == {False}
    assert (counts.busy_blocks, counts.held_blocks) == (2, 2)
    assert (after.busy_blocks, after.held_blocks) == (0, 3)
    assert len(answer.blocks.block_ids) == 2
    assert len(unzeroed.blocks.block_ids) == 1
    assert elapsed < 3.0, "a refusal waited for the work"
    assert "memory work stands still" in server.log
    assert "1 copies have been running for more than 0.2 s" in server.log


def test_a_step_whose_copies_stand_still(servers: Servers) -> None:
    """Its caller is told within its deadline and receives the outcome later, under the same number."""
    with stalling(servers, 4000) as server, server.client() as client, client.create_session(60.0) as session:
        with session.scheduler() as scheduler:
            with pytest.raises((UnavailableError, DeadlineExceededError)):  # as it finds the stream
                scheduler.step(admit=[Admission(1, 4)], schedule=Schedules([1], 4), timeout=1.0)
            unreceived = scheduler.unreceived_steps
            outcome = scheduler.receive(timeout=DEADLINE_SECONDS)
            scheduler.step(finish=[1])

        assert unreceived == (1,)
        assert outcome.step == 1
        assert len(outcome.zeroed_block_ids) == 1
        assert free(client) == client.get_pool().capacity


def test_a_write_that_stands_still(servers: Servers) -> None:
    """A stream of bytes ends, and its blocks stay pinned until the write has ended."""
    with stalling(servers, 4000, skip=1) as server, server.client() as client:
        with client.create_session(60.0) as session:
            blocks = session.allocate_blocks(1)
            with pytest.raises(CopiesStalledError):
                session.write_blocks(blocks, b"x" * client.get_pool().layout.block.image_bytes)
            busy = client.get_pool().usage.busy_blocks
            until(lambda: client.get_pool().usage.busy_blocks == 0, "the write to end")
        assert busy == 1


def test_stopping_is_bounded(servers: Servers) -> None:
    """A server that is told to stop while a copy stands still ends in spite of it, and says so."""
    with stalling(servers, 600_000) as server, plain_stubs(server) as stubs:
        refusal_of(lambda: stubs.blocks.AllocateBlocks(allocation(opened(stubs), "", 1), timeout=DEADLINE_SECONDS))

        server.terminate()

        assert server.wait() == EXIT_STUCK
    assert "1 copies have not ended within 0.5 s" in server.log


def test_a_failpoint_fails_a_copy(servers: Servers) -> None:
    """A copy that raises ends its own call, and no other."""
    environment = {VARIABLE: "copy=1*error"}
    server = servers.start(environment=environment).wait_until_ready()
    with plain_stubs(server) as stubs:
        session = opened(stubs)
        error = refusal_of(lambda: stubs.blocks.AllocateBlocks(allocation(session, "", 1)))
        stubs.blocks.AllocateBlocks(allocation(session, "", 1))
    server.terminate()
    server.wait()

    assert isinstance(error, StateLostError)
    assert "failpoint copy" in server.log


def free(client: Client) -> int:
    """Counts free blocks."""
    return client.get_pool().usage.free_blocks
