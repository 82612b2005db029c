"""Guarantee: a Schedule stream tells its client what it must know, and ends for a reason that its status names."""

import signal
from collections.abc import Callable

import pytest
from google.protobuf.duration_pb2 import Duration

from service.conftest import plain_stubs
from service.raw import OpenSchedule, Stubs, ref_of
from service.servers import BLOCK_TOKENS, CAPACITY, Servers
from statepool import (
    BadFieldError,
    BlockRefs,
    Client,
    DrainingError,
    IncarnationMismatchError,
    PoolExhaustedError,
    Session,
    SessionExpiredError,
    SessionFencedError,
    SessionNotFoundError,
    StatepoolError,
    StreamReplacedError,
)
from statepool.status import error_from_wire
from statepool.v1 import sequence_pb2 as pb
from statepool.v1 import session_pb2, types_pb2


def admission(*ids: int) -> pb.EngineStep:
    """Writes the first step: sequences of one block each."""
    return pb.EngineStep(
        step=1,
        admissions=pb.Admissions(sequence_ids=ids, prompt_tokens=[BLOCK_TOKENS] * len(ids)),
        schedules=pb.Schedules(sequence_ids=ids, num_tokens=[BLOCK_TOKENS]),
    )


def hash_of(row: int) -> bytes:
    """Makes up a prefix hash."""
    return row.to_bytes(8, "little")


def notice_of(stream: OpenSchedule) -> "pb.Notice.Kind.ValueType":
    """Receives a notice."""
    return stream.receive().notice.kind


def opened(stubs: Stubs, ref: types_pb2.SessionRef) -> OpenSchedule:
    """Opens a stream."""
    stream = OpenSchedule(stubs, ref)
    assert stream.answer().HasField("opened")
    return stream


def refused(answer: pb.ScheduleResponse) -> StatepoolError:
    """Reads why a step was refused."""
    assert answer.HasField("refusal")
    return error_from_wire(answer.refusal.error)


def test_pressure_and_relief(servers: Servers) -> None:
    """Every stream is told when blocks run short, whoever took them, and when there are plenty again."""
    server = servers.shared("--pressure", "0.25")
    with plain_stubs(server) as stubs, server.client() as client, client.create_session(60.0) as session:
        stream = opened(stubs, ref_of(session))

        blocks = session.allocate_blocks(CAPACITY - 3)
        scarce = stream.receive().notice
        session.free_blocks(blocks)
        plenty = notice_of(stream)
        stream.finish()

    assert (scarce.kind, scarce.usage.free_blocks) == (pb.Notice.KIND_PRESSURE, 3)
    assert plenty == pb.Notice.KIND_RELIEF


TAKING: dict[str, Callable[[Session, BlockRefs], object]] = {
    "retain": lambda session, blocks: session.retain_blocks(blocks),
    "look up": lambda session, blocks: [session.lookup_prefix([hash_of(row)]) for row in range(len(blocks))],
}


@pytest.mark.parametrize("way", TAKING)
def test_pressure_by_use_of_what_was_evictable(servers: Servers, way: str) -> None:
    """Blocks that could have been evicted, and are used again, run short as others do."""
    server = servers.shared("--pressure", "0.25")
    with plain_stubs(server) as stubs, server.client() as client, client.create_session(60.0) as session:
        blocks = session.allocate_blocks(CAPACITY)
        hashes = [hash_of(row) for row in range(CAPACITY)]
        session.commit_blocks(blocks, prefix_hashes=hashes, boundary_tokens=16, written_through_tokens=16)
        session.free_blocks(blocks)
        stream = opened(stubs, ref_of(session))

        TAKING[way](session, blocks)
        kind = notice_of(stream)
        stream.finish()
        session.free_blocks(blocks)
        session.evict_blocks(blocks)

    assert kind == pb.Notice.KIND_PRESSURE


def test_stream_that_opens_under_pressure(servers: Servers) -> None:
    """A stream that opens while blocks are scarce is told at once."""
    server = servers.shared("--pressure", "0.25")
    with plain_stubs(server) as stubs, server.client() as client, client.create_session(60.0) as session:
        session.allocate_blocks(CAPACITY)
        stream = OpenSchedule(stubs, ref_of(session))
        first = stream.receive()
        kind = notice_of(stream)
        stream.finish()

    assert first.HasField("opened")
    assert kind == pb.Notice.KIND_PRESSURE


def test_exhaustion_is_in_the_stream(stubs: Stubs, session: Session, client: Client) -> None:
    """A step that does not fit is refused with the numbers, and the stream goes on."""
    session.allocate_blocks(CAPACITY - 1)
    stream = opened(stubs, ref_of(session))

    error = refused(stream.step(admission(1, 2)))
    fits = stream.step(admission(1))
    stream.finish()

    assert isinstance(error, PoolExhaustedError)
    assert error.metadata == {"free": "1", "evictable": "0", "requested": "2"}
    assert error.retry_after is not None
    assert fits.outcome.usage.free_blocks == 0


def test_session_that_is_deleted(stubs: Stubs, client: Client) -> None:
    """A stream ends when its session does, also while it waits for its client."""
    session = client.create_session(60.0)
    stream = opened(stubs, ref_of(session))

    session.delete()

    assert isinstance(stream.refusal(), SessionNotFoundError)


def test_session_that_is_taken_over(stubs: Stubs, client: Client) -> None:
    """The stream of a former owner ends; the new owner finds the sequences and their outstanding steps, and goes on."""
    former = client.create_session(60.0, owner_key="engine")
    stream = opened(stubs, ref_of(former))
    stream.step(admission(1, 2))

    with client.create_session(60.0, owner_key="engine", take_over=True) as session:
        error = stream.refusal()
        listed = stubs.sequences.ListSequences(pb.ListSequencesRequest(session_id=session.session_id))
        successor = OpenSchedule(stubs, ref_of(session))
        begun = successor.answer().opened
        commits = pb.Commits(sequence_ids=listed.sequence_ids, accepted_tokens=[1])
        answer = successor.step(
            pb.EngineStep(step=begun.last_step + 1, settled_step=1, commits=commits, finishes=[1, 2])
        )
        successor.finish()

    assert isinstance(error, SessionFencedError)
    assert (list(listed.sequence_ids), list(listed.outstanding_tokens)) == ([1, 2], [BLOCK_TOKENS] * 2)
    assert (listed.last_step, listed.settled_step) == (1, 0)
    assert answer.outcome.usage.sequences == 0


def test_one_stream_of_a_session(stubs: Stubs, session: Session) -> None:
    """Another stream of the same owner ends the former one, from which no step is applied once the other is open."""
    former = opened(stubs, ref_of(session))
    former.step(admission(1))
    for number in range(2, 202):  # more than are applied until the other stream opens, or not
        former.send(pb.ScheduleRequest(step=pb.EngineStep(step=number)))

    later = OpenSchedule(stubs, ref_of(session))
    begun = later.answer().opened
    error = former.refusal()
    listed = stubs.sequences.ListSequences(pb.ListSequencesRequest(session_id=session.session_id))
    commits = pb.Commits(all_running=True, accepted_tokens=[1])
    step = begun.last_step + 1
    answer = later.step(pb.EngineStep(step=step, settled_step=1, commits=commits, finishes=[1]))
    later.finish()

    assert isinstance(error, StreamReplacedError)
    assert listed.last_step == begun.last_step
    assert answer.outcome.usage.sequences == 0


def test_session_that_expires(stubs: Stubs, client: Client, servers: Servers) -> None:
    """A stream ends when the lease of its session runs out, and its sequences are gone."""
    with plain_stubs(servers.shared()) as own:
        ref = _unrenewed(own)
        stream = opened(own, ref)
        stream.step(admission(1))

        assert isinstance(stream.refusal(), SessionExpiredError)
    assert client.get_pool().usage.sequences == 0


def _unrenewed(stubs: Stubs) -> types_pb2.SessionRef:
    """Opens a session that nobody keeps alive."""
    request = session_pb2.CreateSessionRequest(ttl=Duration(nanos=500_000_000))
    return stubs.sessions.CreateSession(request).session.ref


@pytest.mark.parametrize(
    ("first", "later"),
    [
        (pb.ScheduleRequest(step=pb.EngineStep(step=1)), None),
        (pb.ScheduleRequest(), None),
        (None, pb.ScheduleRequest(open=types_pb2.SessionRef())),
        (None, pb.ScheduleRequest()),
    ],
)
def test_messages_out_of_place(
    stubs: Stubs, session: Session, first: pb.ScheduleRequest | None, later: pb.ScheduleRequest | None
) -> None:
    """The first message opens, every other is a step; else the stream ends."""
    if first is not None:
        stream = OpenSchedule(stubs, types_pb2.SessionRef(), first=first)
    else:
        stream = opened(stubs, ref_of(session))
        assert later is not None
        stream.send(later)

    assert isinstance(stream.refusal(), BadFieldError)


def test_stream_for_another_server_process(stubs: Stubs, session: Session) -> None:
    """A stream that is meant for another incarnation is refused."""
    ref = ref_of(session)
    ref.incarnation += 1

    assert isinstance(OpenSchedule(stubs, ref).refusal(), IncarnationMismatchError)


def test_draining(servers: Servers) -> None:
    """A stopping server says so, refuses admissions, and lets a scheduler finish its sequences before it ends."""
    server = servers.start("--drain-timeout", "60s").wait_until_ready()
    with plain_stubs(server) as stubs, server.client() as client, client.create_session(60.0) as session:
        stream = opened(stubs, ref_of(session))
        stream.step(admission(1))

        server.terminate(signal.SIGTERM)
        kind = notice_of(stream)
        more = admission(2)
        more.step = 2
        error = refused(stream.step(more))
        commits = pb.Commits(all_running=True, accepted_tokens=[1])
        last = stream.step(pb.EngineStep(step=2, settled_step=1, commits=commits, finishes=[1]))
        end = stream.refusal()

    assert kind == pb.Notice.KIND_GOING_AWAY
    assert isinstance(error, DrainingError)
    assert last.outcome.usage.sequences == 0
    assert isinstance(end, DrainingError)
    server.stop()


def test_draining_does_not_wait_for_ever(servers: Servers) -> None:
    """A scheduler that finishes nothing is cut off when the time is up."""
    server = servers.start("--drain-timeout", "200ms").wait_until_ready()
    with plain_stubs(server) as stubs, server.client() as client, client.create_session(60.0) as session:
        stream = opened(stubs, ref_of(session))
        stream.step(admission(1))

        server.terminate(signal.SIGTERM)

        assert isinstance(stream.refusal(), DrainingError)
    server.stop()
