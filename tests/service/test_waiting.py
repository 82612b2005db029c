"""Guarantee: an allocation that may wait gets its blocks first come, first served, or a refusal in time."""

import contextlib
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from service.conftest import plain_stubs
from service.raw import Stubs, ref_of, refusal_of, writing
from service.servers import CAPACITY, DEADLINE_SECONDS, Server, until
from statepool import (
    BlockRefs,
    CancelledError,
    Client,
    DeadlineExceededError,
    OverloadedError,
    PoolExhaustedError,
    Session,
    SessionFencedError,
    SessionNotFoundError,
)
from statepool.v1 import block_pb2 as pb
from statepool.v1 import pool_pb2, session_pb2

LONG = Duration(seconds=600)


def _waiting(stubs: Stubs) -> int:
    return stubs.pool.GetPool(pool_pb2.GetPoolRequest()).pool.usage.waiting_allocations


def _request(session: Session, count: int, max_wait: Duration | None = LONG, request_id: str = "") -> Any:
    return pb.AllocateBlocksRequest(session=ref_of(session), request_id=request_id, count=count, max_wait=max_wait)


def _queue(stubs: Stubs, session: Session, count: int, request_id: str = "") -> Any:
    """Starts an allocation and waits until it stands in the line."""
    before = _waiting(stubs)
    future = stubs.blocks.AllocateBlocks.future(_request(session, count, request_id=request_id))
    until(lambda: _waiting(stubs) == before + 1, "the allocation to wait")
    return future


def _ids(future: Any) -> list[int]:
    return list(future.result(DEADLINE_SECONDS).blocks.block_ids)


@pytest.fixture
def everything(session: Session) -> BlockRefs:
    """Holds every block of the pool."""
    return session.allocate_blocks(CAPACITY)


def test_waits_until_blocks_are_freed(session: Session, other: Session, stubs: Stubs, everything: BlockRefs) -> None:
    """A waiting call gets the blocks in the step that frees them."""
    future = _queue(stubs, other, 2)

    session.free_blocks(everything[:1])
    assert not future.done()
    session.free_blocks(everything[1:2])

    assert sorted(_ids(future)) == sorted(everything.block_ids[:2].tolist())


def test_first_come_first_served(session: Session, other: Session, stubs: Stubs, everything: BlockRefs) -> None:
    """A small request behind a large one waits for it, although its blocks are there."""
    large, small = _queue(stubs, other, 3), _queue(stubs, other, 1)

    session.free_blocks(everything[:2])
    assert _waiting(stubs) == 2
    session.free_blocks(everything[2:3])
    assert len(_ids(large)) == 3
    assert _waiting(stubs) == 1
    session.free_blocks(everything[3:4])

    assert _ids(small) == [int(everything.block_ids[3])]


def test_nobody_overtakes(session: Session, other: Session, stubs: Stubs, everything: BlockRefs) -> None:
    """A call that would not wait is refused while others wait, although blocks are free."""
    large = _queue(stubs, other, 3)
    session.free_blocks(everything[:2])

    with pytest.raises(PoolExhaustedError) as caught:
        session.allocate_blocks(1)

    assert caught.value.retry_after is not None
    assert caught.value.metadata == {"free": "2", "evictable": "0", "requested": "1"}
    session.free_blocks(everything[2:3])
    assert len(_ids(large)) == 3


def test_refused_when_the_wait_is_over(client: Client, other: Session, everything: BlockRefs) -> None:
    """After max_wait the call is POOL_EXHAUSTED, with what there is, and waits no more."""
    with pytest.raises(PoolExhaustedError) as caught:
        other.allocate_blocks(1, max_wait=0.05)

    assert caught.value.metadata == {"free": "0", "evictable": "0", "requested": "1"}
    assert client.get_pool().usage.waiting_allocations == 0


def test_hopeless_request_does_not_wait(session: Session) -> None:
    """A request for more blocks than the pool has is refused at once."""
    with pytest.raises(PoolExhaustedError):
        session.allocate_blocks(CAPACITY + 1, max_wait=600.0)


def test_line_is_bounded(tight: Server) -> None:
    """A line as long as it may be refuses the next caller at once, with a hint when to come back."""
    with tight.client() as client, client.create_session(60.0) as session, plain_stubs(tight) as stubs:
        blocks = session.allocate_blocks(CAPACITY)
        first, second = _queue(stubs, session, 1), _queue(stubs, session, 1)

        error = refusal_of(lambda: stubs.blocks.AllocateBlocks(_request(session, 1)))

        assert isinstance(error, OverloadedError)
        assert error.retry_after is not None
        session.free_blocks(blocks[:2])
        assert [len(_ids(future)) for future in (first, second)] == [1, 1]


def test_cancelled_call_leaves_the_line(session: Session, other: Session, stubs: Stubs, everything: BlockRefs) -> None:
    """A caller that goes away takes no blocks and holds up nobody."""
    first, second = _queue(stubs, other, 5), _queue(stubs, other, 1)
    session.free_blocks(everything[:1])

    first.cancel()

    assert _ids(second) == [int(everything.block_ids[0])]
    assert _waiting(stubs) == 0


def test_deadline_ends_the_wait(other: Session, stubs: Stubs, everything: BlockRefs) -> None:
    """The caller's deadline bounds the wait as well."""
    error = refusal_of(lambda: stubs.blocks.AllocateBlocks(_request(other, 1), timeout=0.1))

    assert isinstance(error, DeadlineExceededError | PoolExhaustedError)
    until(lambda: _waiting(stubs) == 0, "the line to be empty")


@pytest.mark.parametrize("how", ["delete", "evict", "unpin"])
def test_whatever_frees_blocks_serves_the_line(
    server: Server, client: Client, other: Session, stubs: Stubs, how: str
) -> None:
    """A session's end, an eviction and the end of a running write serve those who wait, too."""
    with contextlib.ExitStack() as stack:
        owner = client.create_session(60.0)
        blocks = owner.allocate_blocks(CAPACITY)
        if how == "unpin":
            stack.enter_context(_freed_while_written(server, owner, blocks[:1]))
        elif how == "evict":
            owner.commit_blocks(
                blocks[:1], prefix_hashes=[b"h"], boundary_tokens=16, written_through_tokens=16, namespace="n"
            )
        future = _queue(stubs, other, 1)

        if how == "unpin":
            stack.close()
        elif how == "evict":
            owner.free_blocks(blocks[:1])
        else:
            owner.delete()

        assert len(_ids(future)) == 1
        owner.close()


@contextlib.contextmanager
def _freed_while_written(server: Server, session: Session, blocks: BlockRefs) -> Iterator[None]:
    with writing(server, session, blocks):
        session.free_blocks(blocks)
        yield


def test_expiry_serves_the_line(other: Session, stubs: Stubs) -> None:
    """When a lease runs out, its blocks go to those who wait."""
    request = session_pb2.CreateSessionRequest(ttl=Duration(nanos=300_000_000))
    short = stubs.sessions.CreateSession(request).session
    stubs.blocks.AllocateBlocks(pb.AllocateBlocksRequest(session=short.ref, count=CAPACITY))

    answer = stubs.blocks.AllocateBlocks(_request(other, 2))

    assert len(answer.blocks.block_ids) == 2


def test_repeated_request_in_the_line_is_one_request(
    session: Session, other: Session, stubs: Stubs, everything: BlockRefs
) -> None:
    """A request that comes again while it waits gets the blocks once, and both calls the same answer."""
    first, again = _queue(stubs, other, 1, "id"), _queue(stubs, other, 1, "id")

    session.free_blocks(everything[:1])

    assert _ids(first) == _ids(again) == [int(everything.block_ids[0])]


def test_session_that_ends_while_it_waits(
    client: Client, session: Session, stubs: Stubs, everything: BlockRefs
) -> None:
    """A waiting call of a deleted session gets no blocks but its session's error."""
    doomed = client.create_session(60.0)
    future = _queue(stubs, doomed, 1)

    doomed.delete()

    assert isinstance(refusal_of(lambda: future.result(DEADLINE_SECONDS)), SessionNotFoundError)
    assert client.get_pool().usage.held_blocks == CAPACITY


def test_session_that_ends_in_the_middle_of_the_line(
    client: Client, session: Session, other: Session, stubs: Stubs, everything: BlockRefs
) -> None:
    """A waiting call of a deleted session is refused at once, although others stand before it."""
    doomed = client.create_session(60.0)
    ahead, future = _queue(stubs, other, 2), _queue(stubs, doomed, 1)

    doomed.delete()

    assert isinstance(refusal_of(lambda: future.result(DEADLINE_SECONDS)), SessionNotFoundError)
    assert not ahead.done()
    session.free_blocks(everything[:2])
    assert len(_ids(ahead)) == 2


def test_owner_that_was_fenced_while_it_waits(client: Client, stubs: Stubs, everything: BlockRefs) -> None:
    """A waiting call of a former owner is refused when its session is taken over."""
    former = client.create_session(60.0, owner_key="waiting")
    future = _queue(stubs, former, 1)

    with client.create_session(60.0, owner_key="waiting", take_over=True):
        assert isinstance(refusal_of(lambda: future.result(DEADLINE_SECONDS)), SessionFencedError)


def test_client_waits_beyond_its_timeout(session: Session, server: Server, everything: BlockRefs) -> None:
    """A client whose timeout is shorter than max_wait still waits as long as it said."""
    with (
        server.client(timeout=0.5) as impatient,
        impatient.create_session(60.0) as waiter,
        pytest.raises(PoolExhaustedError),
    ):
        waiter.allocate_blocks(1, max_wait=0.6)


def test_closed_channel_leaves_the_line(server: Server, client: Client, other: Session, everything: BlockRefs) -> None:
    """A caller whose connection breaks leaves the line."""
    with grpc.insecure_channel(server.target) as channel:
        future = _queue(Stubs(channel), other, 1)

    assert isinstance(refusal_of(lambda: future.result(DEADLINE_SECONDS)), CancelledError)
    until(lambda: client.get_pool().usage.waiting_allocations == 0, "the line to be empty")
