"""Guarantee: a server is taken out of service without taking anything from anybody before its time.

SIGTERM goes the same way; test_lifecycle.py and test_schedule_stream.py send it.
"""

import contextlib
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from service.conftest import plain_stubs
from service.raw import OpenKeepAlive, OpenSchedule, Stubs, ref_of, refusal_of
from service.servers import DEADLINE_SECONDS, IMAGE_BYTES, Server, Servers, until
from service.test_commands import run
from service.test_schedule_stream import admission, notice_of, opened
from statepool import BadFieldError, Client, DeadlineExceededError, DrainingError, Session, UnavailableError
from statepool.v1 import admin_pb2, block_pb2, session_pb2
from statepool.v1 import sequence_pb2 as pb

GOING_AWAY = pb.Notice.KIND_GOING_AWAY
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def server(servers: Servers) -> Server:
    """Starts a server that a test may take out of service; it waits long for what is unfinished."""
    return servers.start("--drain-timeout", "60s").wait_until_ready()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """Connects to it, and leaves no process behind."""
    with server.client() as client:
        yield client
    server.stop()


@pytest.fixture
def stubs(server: Server, client: Client) -> Iterator[Stubs]:
    """Connects to it without the client library."""
    with plain_stubs(server) as stubs:
        yield stubs


def _health(server: Server, service: str) -> int:
    with grpc.insecure_channel(server.target) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        return int(health_pb2_grpc.HealthStub(channel).Check(request, timeout=DEADLINE_SECONDS).status)


def _running(stubs: Stubs, session: Session) -> OpenSchedule:
    """Opens a stream and runs a sequence in it."""
    stream = opened(stubs, ref_of(session))
    assert stream.step(admission(1)).HasField("outcome")
    return stream


def _finish(stream: OpenSchedule) -> None:
    """Ends the sequence."""
    answer = stream.step(pb.EngineStep(step=2, settled_step=1, finishes=[1]))
    assert answer.HasField("outcome")


def test_what_has_begun_goes_on(server: Server, client: Client, stubs: Stubs) -> None:
    """While a sequence runs, its session is renewed, read, written and stepped; nothing new begins; liveness holds."""
    with client.create_session(60.0) as session:
        blocks, leases = session.allocate_blocks(1), OpenKeepAlive(stubs)
        assert not leases.renew(ref_of(session)).HasField("error")
        stream = _running(stubs, session)

        left = client.drain(grace=0.0)

        assert (left.sequences, left.sessions, left.is_drained) == (1, 1, False)
        assert notice_of(stream) == GOING_AWAY
        assert not leases.renew(ref_of(session)).HasField("error")
        assert session.write_blocks(blocks, bytes(IMAGE_BYTES)) == IMAGE_BYTES
        assert session.read_images(blocks).nbytes == IMAGE_BYTES
        session.free_blocks(blocks)
        assert [_health(server, name) for name in ("", "statepool.v1.PoolService")] == [NOT_SERVING, NOT_SERVING]
        assert _health(server, "liveness") == SERVING
        create, allocate = session_pb2.CreateSessionRequest(), block_pb2.AllocateBlocksRequest()
        assert isinstance(refusal_of(lambda: stubs.sessions.CreateSession(create)), DrainingError)
        assert isinstance(refusal_of(lambda: stubs.blocks.AllocateBlocks(allocate)), DrainingError)
        _finish(stream)


def test_drained_server_stays_up(client: Client, stubs: Stubs) -> None:
    """Without a stop the call answers when the last sequence has ended, and the server keeps what sessions hold."""
    with client.create_session(60.0) as session:
        blocks, stream = session.allocate_blocks(2), _running(stubs, session)
        draining = stubs.admin.Drain.future(admin_pb2.DrainRequest(grace=Duration(seconds=50)))
        assert notice_of(stream) == GOING_AWAY
        assert not draining.done()

        _finish(stream)

        assert draining.result(DEADLINE_SECONDS).sequences == 0
        assert client.drain().is_drained
        assert client.get_server_info().is_draining
        assert session.read_images(blocks).nbytes == 2 * IMAGE_BYTES


def test_stop_ends_the_process_when_all_is_done(server: Server, client: Client, stubs: Stubs) -> None:
    """With a stop the process ends by itself, with 0, as soon as the last sequence has ended; streams are told why."""
    session = client.create_session(60.0)
    stream, leases = _running(stubs, session), OpenKeepAlive(stubs)
    leases.renew(ref_of(session))
    draining = stubs.admin.Drain.future(admin_pb2.DrainRequest(grace=Duration(seconds=50), stop=True))
    assert notice_of(stream) == GOING_AWAY

    _finish(stream)

    assert draining.result(DEADLINE_SECONDS).sequences == 0
    assert isinstance(stream.refusal(), DrainingError)
    assert isinstance(leases.refusal(), DrainingError)
    assert server.wait() == 0


def test_stop_ends_what_only_watches(server: Server) -> None:
    """Who watches health is told the last of it, whoever else watches; then those streams end, and reflection's too."""
    with grpc.insecure_channel(server.target) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch
        names = ["", "", "", "statepool.v1.PoolService", "liveness"]
        watchers = [watch(health_pb2.HealthCheckRequest(service=name), timeout=DEADLINE_SECONDS) for name in names]
        assert [next(watcher).status for watcher in watchers] == [SERVING] * 5
        asks: SimpleQueue[reflection_pb2.ServerReflectionRequest | None] = SimpleQueue()
        asks.put(reflection_pb2.ServerReflectionRequest(list_services=""))
        reflecting = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter(asks.get, None), timeout=DEADLINE_SECONDS
        )
        assert next(reflecting).list_services_response.service

        started = time.monotonic()
        server.stop()

        assert time.monotonic() - started < 30.0
        for name, watcher in zip(names, watchers, strict=True):
            last = [] if name == "liveness" else [NOT_SERVING]
            assert [next(watcher).status for _ in last] == last
            assert isinstance(refusal_of(partial(next, watcher)), DrainingError)
        assert isinstance(refusal_of(lambda: next(reflecting)), DrainingError)
        asks.put(None)


@pytest.mark.parametrize("first", [False, True], ids=["at once", "drained before"])
def test_stop_does_not_wait_for_ever(server: Server, client: Client, stubs: Stubs, first: bool) -> None:
    """When the grace time is over, the process ends with 0 whatever has not finished."""
    session = client.create_session(60.0)
    stream = _running(stubs, session)
    if first:
        assert not client.drain(grace=0.0).is_drained

    left = client.drain(grace=0.1, stop=True)

    assert left.sequences == 1
    assert isinstance(stream.refusal(), DrainingError)
    assert server.wait() == 0


def test_signals_join_in(server: Server, client: Client, stubs: Stubs) -> None:
    """Signals during a drain, several of them, and calls during a stop, neither end it early nor kill the process."""
    session = client.create_session(60.0)
    stream = _running(stubs, session)
    client.drain(grace=0.0)
    assert notice_of(stream) == GOING_AWAY

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        server.process.send_signal(number)
    assert not client.drain(grace=0.0, stop=False).is_drained
    _finish(stream)

    assert isinstance(stream.refusal(), DrainingError)
    assert server.wait() == 0


def test_draining_outlives_its_caller(server: Server, client: Client, stubs: Stubs) -> None:
    """A caller who goes away leaves a server that goes on draining, and stops as it was asked to."""
    session = client.create_session(60.0)
    stream = _running(stubs, session)
    call = stubs.admin.Drain.future(admin_pb2.DrainRequest(grace=Duration(seconds=50), stop=True))
    assert notice_of(stream) == GOING_AWAY

    call.cancel()
    _finish(stream)

    assert server.wait() == 0


def test_late_scheduler_is_told(server: Server, client: Client, stubs: Stubs) -> None:
    """A stream that opens while the server drains is told at once, and may finish the sequences of its session."""
    with client.create_session(60.0) as session:
        _running(stubs, session).cut()
        client.drain(grace=0.0)

        stream = OpenSchedule(stubs, ref_of(session))
        kinds = [stream.receive().WhichOneof("message") for _ in range(2)]
        _finish(stream)

    assert sorted(map(str, kinds)) == ["notice", "opened"]


@pytest.mark.parametrize("grace", [Duration(seconds=-1), Duration(nanos=-1), Duration(seconds=2**40)])
def test_bad_grace(servers: Servers, grace: Duration) -> None:
    """A grace time that cannot be is refused, and drains nothing."""
    with plain_stubs(servers.shared()) as stubs:
        error = refusal_of(lambda: stubs.admin.Drain(admin_pb2.DrainRequest(grace=grace)))
        info = stubs.admin.GetServerInfo(admin_pb2.GetServerInfoRequest())

    assert isinstance(error, BadFieldError)
    assert error.field == "grace"
    assert not info.is_draining


def test_command(server: Server, client: Client, stubs: Stubs) -> None:
    """`statepool drain` tells what is left, by its exit code too, and ends the server when it is told to."""
    session = client.create_session(60.0)
    stream = _running(stubs, session)

    first = run("drain", "--target", server.target, "--grace", "0s")
    with contextlib.suppress(grpc.RpcError):
        _finish(stream)
    last = run("drain", "--target", server.target, "--stop")

    assert (first.returncode, first.stdout) == (1, "draining; 1 sequences of 1 sessions have not finished\n")
    assert (last.returncode, last.stdout) == (0, "drained; 1 sessions are open\n")
    assert server.wait() == 0


def test_background_parts_are_listed(servers: Servers) -> None:
    """GetServerInfo lists what works in the background, how it is, and how late the loop is."""
    shared = servers.shared()
    with shared.client() as client:
        info = client.get_server_info()
        until(lambda: client.get_server_info().loop_lag > 0, "the first beat")

    parts = ("reaper", "attach listener", "verifier", "journal", "stall watch", "heartbeat")
    assert info.background == dict.fromkeys(parts, "")
    assert not info.is_draining


def test_calls_that_have_not_begun(servers: Servers) -> None:
    """Calls that reach a server as it stops are answered or UNAVAILABLE, and so sent again; never CANCELLED."""
    server = servers.start().wait_until_ready()
    with server.client(timeout=2.0) as client, ThreadPoolExecutor(32) as threads:
        client.get_pool()
        server.process.send_signal(signal.SIGSTOP)
        calls = [threads.submit(client.get_pool) for _ in range(32)]
        time.sleep(0.5)  # they are on their way
        server.terminate()
        server.process.send_signal(signal.SIGCONT)

        errors = [error for call in calls if (error := call.exception(DEADLINE_SECONDS)) is not None]

    assert [error for error in errors if not isinstance(error, UnavailableError | DeadlineExceededError)] == []
    assert server.wait() == 0
