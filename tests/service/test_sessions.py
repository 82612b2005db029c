"""Guarantee: a session lives as long as it is renewed, has one owner at a time, and takes its blocks with it."""

import asyncio
import threading
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from service.conftest import plain_stubs
from service.proxy import between
from service.raw import Stubs, ref_of, refs, refusal_of
from service.servers import CAPACITY, DEADLINE_SECONDS, Server, until
from statepool import (
    AsyncClient,
    BadFieldError,
    Client,
    GenerationStaleError,
    IncarnationMismatchError,
    OwnerKeyInUseError,
    QuotaExceededError,
    Session,
    SessionExpiredError,
    SessionFencedError,
    SessionNotFoundError,
    StatepoolError,
)
from statepool.v1 import block_pb2
from statepool.v1 import session_pb2 as pb


class Losses:
    """Collects what ``on_lost`` was told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, StatepoolError]] = []
        self.any = threading.Event()

    def __call__(self, session: Session, error: StatepoolError) -> None:
        """Takes note."""
        self.told.append((session.session_id, error))
        self.any.set()


def _open(stubs: Stubs, ttl_ms: int = 60_000) -> pb.Session:
    """Opens a session that nobody keeps alive."""
    request = pb.CreateSessionRequest(ttl=Duration(seconds=ttl_ms // 1000, nanos=ttl_ms % 1000 * 10**6))
    return stubs.sessions.CreateSession(request).session


def _reason(client: Client, session_id: int) -> str:
    try:
        client.get_session(session_id)
    except StatepoolError as error:
        return error.reason
    return ""


def test_create_get_list(client: Client, other: Session) -> None:
    """A session is told as it was created, by id and in the list, and counts its blocks."""
    with client.create_session(30.0, owner_key="worker-1") as session:
        session.allocate_blocks(3)

        got, listed = client.get_session(session.session_id), list(client.list_sessions(page_size=1))

    assert (got.owner_key, got.ttl, got.block_count, got.epoch) == ("worker-1", 30.0, 3, session.epoch)
    assert got.incarnation == session.incarnation != 0
    assert [one.session_id for one in listed] == sorted([other.session_id, session.session_id])


def test_delete_releases_every_reference(client: Client) -> None:
    """A deleted session is gone at once, its uncommitted blocks are free and its committed ones stay findable."""
    session = client.create_session(30.0)
    blocks = session.allocate_blocks(3)
    session.retain_blocks(blocks[:1])
    session.commit_blocks(blocks[2:], prefix_hashes=[b"kept"], boundary_tokens=16, written_through_tokens=16)

    released = session.delete()

    usage = client.get_pool().usage
    assert released == 4
    assert (usage.free_blocks, usage.evictable_blocks, usage.sessions) == (CAPACITY - 1, 1, 0)
    with pytest.raises(SessionNotFoundError):
        client.get_session(session.session_id)
    with pytest.raises(SessionNotFoundError):
        session.allocate_blocks(1)


def test_delete_whose_answer_is_lost(server: Server, client: Client, tmp_path: Path) -> None:
    """It is sent again and has succeeded."""
    with between(tmp_path, server.socket) as proxy, Client(proxy.target, timeout=DEADLINE_SECONDS) as cut_off:
        session = cut_off.create_session(30.0)
        session.allocate_blocks(3)

        with proxy.losing_answers(lambda: _reason(client, session.session_id) != ""):
            released = session.delete()

        assert released == 0
        assert cut_off.stats.retries == 1


async def test_delete_whose_answer_is_lost_async(server: Server, client: Client, tmp_path: Path) -> None:
    """So it is with the client for asyncio; a session that was not there before is not found."""
    with between(tmp_path, server.socket) as proxy:
        async with AsyncClient(proxy.target, timeout=DEADLINE_SECONDS) as cut_off:
            session, gone = await cut_off.create_session(30.0), await cut_off.create_session(30.0)

            with proxy.losing_answers(lambda: _reason(client, session.session_id) != ""):
                assert await session.delete() == 0

            with plain_stubs(server) as stubs:
                stubs.sessions.DeleteSession(pb.DeleteSessionRequest(session=ref_of(gone)))
            with pytest.raises(SessionNotFoundError):
                await gone.delete()


def test_unknown_session_is_not_found(client: Client) -> None:
    """An id that never was is SESSION_NOT_FOUND, the largest included."""
    for session_id in (0, 2**40, 2**64 - 1):
        with pytest.raises(SessionNotFoundError):
            client.get_session(session_id)


def test_session_without_renewals_expires_with_its_blocks(client: Client, session: Session, stubs: Stubs) -> None:
    """When a lease runs out, its id is SESSION_EXPIRED and its refs are stale for everybody."""
    short = _open(stubs, ttl_ms=200)
    request = block_pb2.AllocateBlocksRequest(session=short.ref, count=2)
    blocks = stubs.blocks.AllocateBlocks(request).blocks

    until(lambda: _reason(client, short.ref.session_id) == "SESSION_EXPIRED", "the session to expire")

    assert client.get_pool().usage.free_blocks == CAPACITY
    assert isinstance(refusal_of(lambda: stubs.blocks.AllocateBlocks(request)), SessionExpiredError)
    free = block_pb2.FreeBlocksRequest(session=ref_of(session), blocks=blocks)
    assert isinstance(refusal_of(lambda: stubs.blocks.FreeBlocks(free)), GenerationStaleError)
    delete = pb.DeleteSessionRequest(session=short.ref)
    assert isinstance(refusal_of(lambda: stubs.sessions.DeleteSession(delete)), SessionExpiredError)


def test_owner_key_in_use(client: Client) -> None:
    """A second session of a live owner key is refused unless it asks to take over."""
    with client.create_session(30.0, owner_key="one"):
        with pytest.raises(OwnerKeyInUseError) as caught:
            client.create_session(30.0, owner_key="one")

        assert caught.value.field == "owner_key"
        with client.create_session(30.0, owner_key="two"):
            assert client.get_pool().usage.sessions == 2


def test_owner_key_is_free_after_the_session(client: Client) -> None:
    """A key whose session has ended opens a new session."""
    with client.create_session(30.0, owner_key="again") as first:
        pass

    with client.create_session(30.0, owner_key="again", take_over=True) as second:
        assert second.session_id != first.session_id
        assert not second.taken_over


def test_take_over_fences_the_former_owner_and_keeps_the_blocks(server: Server, client: Client) -> None:
    """The new owner has the same session one epoch on, with its blocks; the former is refused everything."""
    losses = Losses()
    former = client.create_session(30.0, owner_key="owner", on_lost=losses)
    blocks = former.allocate_blocks(2)
    former.write_blocks(blocks, np.full((2, 8), 7, np.uint8))

    with server.client() as restarted, restarted.create_session(40.0, owner_key="owner", take_over=True) as session:
        assert (session.session_id, session.epoch) == (former.session_id, former.epoch + 1)
        assert session.taken_over
        assert restarted.get_session(session.session_id).block_count == 2
        assert (session.read_images(blocks, length=8) == 7).all()
        for _ in range(2):
            with pytest.raises(SessionFencedError):
                former.free_blocks(blocks)
        session.free_blocks(blocks)

    assert isinstance(former.error, SessionFencedError)
    assert [(id_, type(error)) for id_, error in losses.told] == [(former.session_id, SessionFencedError)]


def test_keep_alive_outlives_the_ttl(client: Client) -> None:
    """A short lease is renewed in the background again and again."""
    losses = Losses()
    with client.create_session(1.0, on_lost=losses) as session:
        first = client.get_session(session.session_id).expire_time

        until(
            lambda: client.get_session(session.session_id).expire_time >= first + timedelta(seconds=1.5),
            "several renewals",
        )

        assert session.error is None
    assert losses.told == []


async def test_a_broken_keep_alive_leaves_no_task_behind(server: Server, client: Client, tmp_path: Path) -> None:
    """However often its connection breaks, a client for asyncio has a few tasks, and not one more each time."""
    breaks = 8
    with between(tmp_path, server.socket) as proxy:
        async with (
            AsyncClient(proxy.target) as cut_off,
            await cut_off.create_session(1.0, resume_within=60.0) as session,
        ):
            for _ in range(breaks):
                before = client.get_session(session.session_id).expire_time
                proxy.cut()
                await asyncio.to_thread(_until_renewed, client, session.session_id, before)

            async with asyncio.timeout(DEADLINE_SECONDS / 10):
                while len(asyncio.all_tasks()) > breaks:  # noqa: ASYNC110 - no event tells of it
                    await asyncio.sleep(0.01)


def _until_renewed(client: Client, session_id: int, before: datetime) -> None:
    until(lambda: client.get_session(session_id).expire_time > before, "the lease to be renewed")


def test_loss_is_told_without_a_call(server: Server, client: Client) -> None:
    """A client that makes no call hears from its renewals that it was fenced, once."""
    losses = Losses()
    former = client.create_session(1.0, owner_key="idle", on_lost=losses)

    with server.client() as thief, thief.create_session(30.0, owner_key="idle", take_over=True):
        assert losses.any.wait(DEADLINE_SECONDS)
        with pytest.raises((SessionFencedError, SessionExpiredError)):
            former.allocate_blocks(1)

    assert len(losses.told) == 1


def test_keep_alive_answers_in_order_and_in_band(session: Session, client: Client, stubs: Stubs) -> None:
    """One stream renews many sessions; each error stands in its row and ends nothing."""
    mine, short = ref_of(session), _open(stubs, ttl_ms=50)
    until(lambda: _reason(client, short.ref.session_id) == "SESSION_EXPIRED", "the session to expire")
    unknown, fenced, elsewhere = ref_of(session), ref_of(session), ref_of(session)
    unknown.session_id, fenced.epoch, elsewhere.incarnation = 2**50, mine.epoch + 1, mine.incarnation ^ 2
    rows = [mine, unknown, short.ref, fenced, elsewhere, mine]

    first, second = stubs.sessions.KeepAlive(
        iter([pb.KeepAliveRequest(sessions=rows), pb.KeepAliveRequest(sessions=[mine])])
    )

    reasons = ["", "SESSION_NOT_FOUND", "SESSION_EXPIRED", "SESSION_FENCED", "INCARNATION_MISMATCH", ""]
    assert [row.error.reason for row in first.results] == reasons
    assert [row.error.code for row in first.results] == [0, 5, 5, 10, 9, 0]
    assert [row.HasField("expire_time") for row in first.results] == [reason == "" for reason in reasons]
    assert [row.session_id for row in first.results] == [ref.session_id for ref in rows]
    assert second.results[0].expire_time.ToNanoseconds() >= first.results[0].expire_time.ToNanoseconds()


def test_quota_of_sessions(tight: Server) -> None:
    """The server holds no more than max_sessions, and one that ends makes room."""
    with tight.client() as client:
        first, *_ = [client.create_session(30.0) for _ in range(3)]

        with pytest.raises(QuotaExceededError) as caught:
            client.create_session(30.0)
        first.close()

        assert caught.value.metadata == {"limit": "3"}
        assert client.create_session(30.0).session_id > first.session_id


def test_take_over_needs_no_room(tight: Server) -> None:
    """A full server can still be taken over by a restarted owner."""
    with tight.client() as client, tight.client() as restarted:
        former = [client.create_session(30.0, owner_key=f"{i}") for i in range(3)]

        session = restarted.create_session(30.0, owner_key="1", take_over=True)

        assert session.session_id == former[1].session_id


@pytest.mark.parametrize("ttl", [0.0, 0.049, 3600.001, 10**8])
def test_ttl_out_of_bounds(client: Client, ttl: float) -> None:
    """A ttl beyond the limits is refused with the field."""
    with pytest.raises(BadFieldError) as caught:
        client.create_session(ttl)

    assert caught.value.field == "ttl"


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.CreateSessionRequest(ttl=Duration(seconds=-1)), "ttl"),
        (pb.CreateSessionRequest(ttl=Duration(seconds=1, nanos=-1)), "ttl"),
        (pb.CreateSessionRequest(ttl=Duration(seconds=2**63 - 1)), "ttl"),
        (pb.CreateSessionRequest(ttl=Duration(seconds=1), owner_key="ä" * 129), "owner_key"),
        (pb.CreateSessionRequest(ttl=Duration(seconds=1), request_id="x" * 65), "request_id"),
        (pb.CreateSessionRequest(ttl=Duration(seconds=1), on_conflict=9), "on_conflict"),  # type: ignore[arg-type]
    ],
)
def test_bad_session_request_is_refused_by_field(
    client: Client, stubs: Stubs, request_: pb.CreateSessionRequest, field: str
) -> None:
    """A request that means nothing is refused with the field at fault, and opens nothing."""
    error = refusal_of(lambda: stubs.sessions.CreateSession(request_))

    assert isinstance(error, BadFieldError)
    assert error.field == field
    assert client.get_pool().usage.sessions == 0


def test_every_call_checks_epoch_and_incarnation(session: Session, stubs: Stubs) -> None:
    """A call with another epoch is SESSION_FENCED, with another incarnation INCARNATION_MISMATCH."""
    blocks = refs(session.allocate_blocks(1))
    fenced, elsewhere = ref_of(session), ref_of(session)
    fenced.epoch, elsewhere.incarnation = 0, 1
    for ref, expected in ((fenced, SessionFencedError), (elsewhere, IncarnationMismatchError)):
        calls: list[tuple[Any, Message]] = [
            (stubs.blocks.AllocateBlocks, block_pb2.AllocateBlocksRequest(session=ref, count=1)),
            (stubs.blocks.FreeBlocks, block_pb2.FreeBlocksRequest(session=ref, blocks=blocks)),
            (stubs.blocks.RetainBlocks, block_pb2.RetainBlocksRequest(session=ref, blocks=blocks)),
            (stubs.blocks.CommitBlocks, block_pb2.CommitBlocksRequest(session=ref)),
            (stubs.blocks.LookupPrefix, block_pb2.LookupPrefixRequest(session=ref)),
            (stubs.blocks.EvictBlocks, block_pb2.EvictBlocksRequest(session=ref)),
            (stubs.blocks.CopyBlocks, block_pb2.CopyBlocksRequest(session=ref)),
            (stubs.sessions.DeleteSession, pb.DeleteSessionRequest(session=ref)),
        ]
        for call, request in calls:
            error = refusal_of(partial(call, request))
            assert isinstance(error, expected), request
