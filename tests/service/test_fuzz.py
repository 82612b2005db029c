"""Guarantee: whatever a peer sends, it gets a proper status in time, and the server lives on."""

import struct
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.conftest import empty
from service.raw import OpenSchedule, Stubs
from service.servers import CAPACITY, Server
from statepool import Client
from statepool.rpc import RPCS, Rpc
from statepool.v1 import pool_pb2, session_pb2, types_pb2
from statepool.v1 import sequence_pb2 as pb

CALL_SECONDS = 20.0
"""Deadline of each call; every call ends by itself long before."""
NEVER = (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.DEADLINE_EXCEEDED)
STREAMED = ("KeepAlive", "Schedule", "WriteBlocks")
FUZZED = [rpc for rpc in RPCS if rpc.name != "Drain"]
"""All but the one that no server comes back from; it has two scalars, whose bounds test_draining.py tries."""
FUZZ = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
_BOUNDS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(2**31), 2**31 - 1),
}


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    """Opens a channel that sends bytes as they are."""
    with grpc.insecure_channel(server.target) as channel:
        yield channel


@pytest.fixture
def live(server: Server, channel: grpc.Channel) -> Iterator[types_pb2.SessionRef]:
    """Opens a session that absurd requests may name, so that they get past its check; then proves the pool whole."""
    with server.client() as client:
        with client.create_session(600.0) as session:
            session.commit_blocks(
                session.allocate_blocks(2),
                prefix_hashes=[b"h", b"i"],
                boundary_tokens=16,
                written_through_tokens=16,
            )
            yield types_pb2.SessionRef(
                session_id=session.session_id, epoch=session.epoch, incarnation=session.incarnation
            )
        _end_sessions(client, channel)
        empty(client)
        assert client.get_pool().usage.free_blocks == CAPACITY


def _end_sessions(client: Client, channel: Any) -> None:
    delete = channel.unary_unary("/statepool.v1.SessionService/DeleteSession")
    for session in client.list_sessions():
        ref = types_pb2.SessionRef(session_id=session.session_id, epoch=session.epoch, incarnation=session.incarnation)
        delete(session_pb2.DeleteSessionRequest(session=ref).SerializeToString())


def _scalars(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    """Draws values of a field that is no message: mostly small or extreme ones."""
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.binary(max_size=80) | st.just(b"x" * 100_000)
    if field.type == FieldDescriptor.TYPE_STRING:
        configs = st.sampled_from(['{"model_type": "mamba"}', '{"model_type": "custom", "states": 1}', "[" * 5000])
        return st.text(max_size=70) | st.just("ü" * 5000) | configs
    low, high = _BOUNDS[field.cpp_type]
    return st.integers(0, 20) | st.sampled_from([low, high, high // 2, 1]) | st.integers(low, high)


@st.composite
def messages(draw: st.DrawFn, descriptor: Descriptor, ref: types_pb2.SessionRef, depth: int = 0) -> Message:
    """Draws a message of any type, with absurd values in any of its fields."""
    if descriptor is types_pb2.SessionRef.DESCRIPTOR and draw(st.integers(0, 4)):
        return ref
    message = GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if draw(st.integers(0, 3)) == 0:
            continue
        values = messages(field.message_type, ref, depth + 1) if field.message_type else _scalars(field)
        if field.is_repeated:
            column = draw(st.lists(values, max_size=3 if depth else 5))
            if field.cpp_type in _BOUNDS and draw(st.integers(0, 30)) == 0:
                column *= 2000
            getattr(message, field.name).extend(column)
        elif field.message_type:
            getattr(message, field.name).CopyFrom(draw(values))
        else:
            setattr(message, field.name, draw(values))
    return message


def _bounded(message: Any) -> Any:
    """Shortens what the server would be right to wait for."""
    if "max_wait" in message.DESCRIPTOR.fields_by_name:
        message.max_wait.seconds = min(message.max_wait.seconds, 0)
    return message


def _status(call: Callable[[], object]) -> grpc.StatusCode:
    try:
        call()
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def _send(channel: Any, rpc: Rpc[Any, Any], *sent: bytes) -> grpc.StatusCode:
    """Makes a call with requests that are sent as they are."""
    if rpc.name in ("KeepAlive", "Schedule"):
        return _status(lambda: list(channel.stream_stream(rpc.path)(iter(sent), timeout=CALL_SECONDS)))
    if rpc.name == "WriteBlocks":
        return _status(lambda: channel.stream_unary(rpc.path)(iter(sent), timeout=CALL_SECONDS))
    if rpc.name == "ReadBlocks":
        return _status(lambda: list(channel.unary_stream(rpc.path)(sent[0], timeout=CALL_SECONDS)))
    if rpc.name == "WatchBlocks":
        return _first_status(channel.unary_stream(rpc.path)(sent[0], timeout=CALL_SECONDS))
    return _status(lambda: channel.unary_unary(rpc.path)(sent[0], timeout=CALL_SECONDS))


def _first_status(stream: Any) -> grpc.StatusCode:
    """Waits for the first message, or the refusal, of a stream that lasts as long as its client."""
    try:
        return _status(lambda: next(stream))
    finally:
        stream.cancel()


def _assert_alive(channel: Any) -> None:
    answer = channel.unary_unary("/statepool.v1.PoolService/GetPool")(b"", timeout=CALL_SECONDS)
    assert pool_pb2.GetPoolResponse.FromString(answer).pool.capacity == CAPACITY


@pytest.mark.parametrize("rpc", FUZZED, ids=lambda rpc: rpc.name)
def test_random_bytes(channel: grpc.Channel, live: types_pb2.SessionRef, rpc: Rpc[Any, Any]) -> None:
    """Bytes that are no message, or a strange one, get a status of their own."""

    @FUZZ
    @given(st.lists(st.binary(max_size=60), min_size=1, max_size=3))
    def send(sent: list[bytes]) -> None:
        assert _send(channel, rpc, *sent) not in NEVER

    send()
    _assert_alive(channel)


@pytest.mark.parametrize("rpc", FUZZED, ids=lambda rpc: rpc.name)
def test_absurd_messages(channel: grpc.Channel, live: types_pb2.SessionRef, rpc: Rpc[Any, Any]) -> None:
    """Valid messages with extreme numbers, huge strings and columns of any lengths get a status of their own."""
    drawn = messages(rpc.request_type.DESCRIPTOR, live).map(_bounded)

    @FUZZ
    @given(st.lists(drawn, min_size=1, max_size=4 if rpc.name in STREAMED else 1))
    def send(requests: list[Message]) -> None:
        assert _send(channel, rpc, *(request.SerializeToString() for request in requests)) not in NEVER

    send()
    _assert_alive(channel)


@st.composite
def plausible_steps(draw: st.DrawFn) -> list[pb.EngineStep]:
    """Draws steps that look as an engine's: few sequences, small numbers, columns that mostly fit."""
    ids = st.lists(st.integers(1, 5), max_size=2)
    steps = []
    for _ in range(6):
        step = pb.EngineStep(settled_step=draw(st.integers(1, 3)))
        step.execution = draw(st.sampled_from([pb.EXECUTION_SERVER, pb.EXECUTION_WORKER]))
        parts = draw(st.sets(st.sampled_from(["commit", "finish", "admit", "schedule"]), min_size=1))
        if "commit" in parts:
            step.commits.all_running = draw(st.booleans())
            step.commits.accepted_tokens.append(draw(st.integers(0, 2)))
        if "finish" in parts:
            step.finishes.extend(draw(ids))
        if "admit" in parts:
            admitted = draw(ids)
            step.admissions.sequence_ids.extend(admitted)
            step.admissions.prompt_tokens.extend(draw(st.integers(10, 70)) for _ in admitted)
            step.admissions.hash_offsets.extend(range(len(admitted) + 1))
            step.admissions.prefix_hashes.extend(draw(st.sampled_from([b"h", b"i", b"none"])) for _ in admitted)
        if "schedule" in parts:
            step.schedules.sequence_ids.extend(draw(st.just(list(step.admissions.sequence_ids)) | ids))
            step.schedules.num_tokens.append(draw(st.integers(0, 40)))
        steps.append(step)
    return steps


def test_plausible_steps(channel: grpc.Channel, live: types_pb2.SessionRef) -> None:
    """Steps of a careless engine are applied, or refused in the stream for a reason."""
    applied: list[int] = []

    @settings(FUZZ, max_examples=150)
    @given(plausible_steps())
    def send(steps: list[pb.EngineStep]) -> None:
        stream = OpenSchedule(Stubs(channel), live)
        number = stream.answer().opened.last_step
        for step in steps:
            step.step, step.settled_step = number + 1, number + 1 - min(step.settled_step, number + 1)
            answer = stream.step(step)
            if answer.HasField("outcome"):
                number += 1
                applied.append(number)
            else:
                assert answer.refusal.error.reason
                assert answer.refusal.error.message
        stream.finish()

    send()
    assert len(applied) > 50
    _assert_alive(channel)


def test_unpacked_and_truncated_columns(channel: grpc.Channel, live: types_pb2.SessionRef) -> None:
    """A column that came unpacked is read as any other; one that is cut short is refused."""
    ref = live.SerializeToString()
    session = b"\x0a" + bytes([len(ref)]) + ref
    unpacked = b"\x0d" + struct.pack("<I", 3) + b"\x11" + struct.pack("<Q", 2**64 - 1)
    free = next(rpc for rpc in RPCS if rpc.name == "FreeBlocks")

    whole = _send(channel, free, session + b"\x1a" + bytes([len(unpacked)]) + unpacked)
    short = _send(channel, free, session + b"\x1a" + bytes([len(unpacked)]) + unpacked[:-1])

    assert whole is grpc.StatusCode.ABORTED
    assert short is grpc.StatusCode.INVALID_ARGUMENT
