"""Guarantee: an error raised in the server arrives in either client as the same class, with code, field and facts."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from service.servers import CAPACITY, DEADLINE_SECONDS, Server, Servers
from service.test_copies import DS_FLAGS
from statepool import (
    Admission,
    AsyncClient,
    BlockInSequenceError,
    BlockRefs,
    Client,
    Schedules,
    SequenceExistsError,
    StatepoolError,
    Transfer,
)
from statepool.errors import BY_REASON, Code

NOT_THROUGH_A_CLIENT = {
    "REQUEST_ID_REUSED": "the client draws its ids at random; test_replays.py sends them by hand",
    "CHECKSUM_MISMATCH": "the client sends true checksums; test_streams.py sends a false one",
    "SESSION_EXPIRED": "the client keeps its sessions alive; test_sessions.py leaves one alone",
    "INCARNATION_MISMATCH": "the client sends what the server told it; test_blocks.py sends another number",
    "BLOCK_BUSY": "needs an open stream; test_copies.py keeps one open",
    "OVERLOADED": "is retried by the client until its deadline; test_waiting.py asks once",
    "DRAINING": "needs a server that stops; test_lifecycle.py stops one",
    "STATE_LOST": "needs a copy engine that fails; test_lost_states.py has one, in process",
    "FEATURE_UNAVAILABLE": "needs an arena that cannot be attached, in device memory",
    "STREAM_STALLED": "takes a peer that stands still; test_stalls.py has some",
    "COPIES_STALLED": "takes memory work that stands still; test_stalled_copies.py has some",
    "EVENT_CURSOR_COMPACTED": "takes a watcher that was away for long; test_watching.py has one",
    "STREAM_REPLACED": "a session has one scheduler; test_schedule_stream.py opens two streams",
    "ROLE_FORBIDDEN": "needs a caller with fewer roles than the tests have here; tests/security has all kinds",
}
"""Reasons that are reached elsewhere, or nowhere yet, and why."""


@dataclasses.dataclass(frozen=True)
class Expected:
    """What a refused call must carry."""

    code: Code
    field: str = ""
    facts: dict[str, str] = dataclasses.field(default_factory=dict)
    names_block: bool = False


NO_TRANSFER = Transfer(2**60, bytes(16), 1, 0)
EXPECTED = {
    "BAD_FIELD": Expected(Code.INVALID_ARGUMENT, "count"),
    "COLUMN_LENGTH_MISMATCH": Expected(Code.INVALID_ARGUMENT, "prefix_hashes"),
    "BATCH_TOO_LARGE": Expected(Code.INVALID_ARGUMENT, "count", {"limit": "4096"}),
    "BLOCK_INDEX_OUT_OF_RANGE": Expected(Code.OUT_OF_RANGE, "blocks", {"row": "0"}),
    "SESSION_NOT_FOUND": Expected(Code.NOT_FOUND, "session"),
    "ATTACHMENT_NOT_FOUND": Expected(Code.NOT_FOUND, "attachment_id"),
    "OWNER_KEY_IN_USE": Expected(Code.ALREADY_EXISTS, "owner_key"),
    "LAYOUT_MISMATCH": Expected(Code.FAILED_PRECONDITION, "header.layout_fingerprint"),
    "BLOCK_NOT_OWNED": Expected(Code.FAILED_PRECONDITION, "blocks", names_block=True),
    "BLOCK_NOT_WRITABLE": Expected(Code.FAILED_PRECONDITION, "blocks", {"row": "0"}),
    "BOUNDARY_NOT_WRITTEN": Expected(Code.FAILED_PRECONDITION, "written_through_tokens", {"row": "0"}),
    "GENERATION_STALE": Expected(Code.ABORTED, "blocks", {"row": "0"}),
    "SESSION_FENCED": Expected(Code.ABORTED, "session"),
    "POOL_EXHAUSTED": Expected(
        Code.RESOURCE_EXHAUSTED, "count", {"free": "15", "evictable": "0", "requested": str(CAPACITY)}
    ),
    "QUOTA_EXCEEDED": Expected(Code.RESOURCE_EXHAUSTED, "", {"limit": "3"}),
    "DS_SPEC_NOT_CONTIGUOUS": Expected(Code.UNIMPLEMENTED, "num_accepted_tokens"),
    "SEQUENCE_NOT_FOUND": Expected(Code.NOT_FOUND, "finishes", {"row": "0"}),
    "SEQUENCE_EXISTS": Expected(Code.ALREADY_EXISTS, "admissions.sequence_ids", {"row": "0"}),
    "STEP_OUT_OF_ORDER": Expected(Code.FAILED_PRECONDITION, "step", {"last_step": "0"}),
    "TRANSFER_NOT_FOUND": Expected(Code.NOT_FOUND, "transfer"),
    "PEER_UNTRUSTED": Expected(Code.UNAUTHENTICATED, "source"),
    "PEER_LOST": Expected(Code.ABORTED, "source"),
    "BLOCK_IN_SEQUENCE": Expected(Code.FAILED_PRECONDITION, "blocks", names_block=True),
}


def _calls(client: Any, session: Any, blocks: BlockRefs) -> dict[str, Callable[[], Any]]:
    """Lists a refused call per reason; client and session are of either kind."""
    commit: dict[str, Any] = {"boundary_tokens": 16, "written_through_tokens": 16}
    past_the_end = BlockRefs.of([CAPACITY + 1], [1])
    return {
        "BAD_FIELD": lambda: session.allocate_blocks(0),
        "COLUMN_LENGTH_MISMATCH": lambda: session.commit_blocks(blocks, prefix_hashes=[], **commit),
        "BATCH_TOO_LARGE": lambda: session.allocate_blocks(4097),
        "BLOCK_INDEX_OUT_OF_RANGE": lambda: session.free_blocks(past_the_end),
        "SESSION_NOT_FOUND": lambda: client.get_session(2**60),
        "ATTACHMENT_NOT_FOUND": lambda: client.detach_pool(2**60, b""),
        "OWNER_KEY_IN_USE": lambda: client.create_session(30.0, owner_key="errors"),
        "LAYOUT_MISMATCH": lambda: session.write_blocks(blocks, bytes(8), layout_fingerprint="another"),
        "BLOCK_NOT_OWNED": lambda: session.free_blocks(BlockRefs.concat([blocks, blocks])),
        "BOUNDARY_NOT_WRITTEN": lambda: session.commit_blocks(
            blocks, prefix_hashes=[b"h"], boundary_tokens=16, written_through_tokens=8
        ),
        "GENERATION_STALE": lambda: session.free_blocks(BlockRefs.of(blocks.block_ids, blocks.generations + 2)),
        "POOL_EXHAUSTED": lambda: session.allocate_blocks(CAPACITY),
        "SEQUENCE_NOT_FOUND": lambda: session.step(1, finish=[7]),
        "STEP_OUT_OF_ORDER": lambda: session.step(2),
        "TRANSFER_NOT_FOUND": lambda: client.cancel_transfer(NO_TRANSFER),
        "PEER_UNTRUSTED": lambda: session.receive_transfer(NO_TRANSFER, source="10.0.0.1:1"),
        "PEER_LOST": lambda: session.receive_transfer(NO_TRANSFER, source="unix:/nobody.sock"),
    }


def _assert_carries(error: StatepoolError, reason: str) -> None:
    expected = EXPECTED[reason]
    assert type(error) is BY_REASON[reason]
    assert (error.code, error.reason, error.field) == (expected.code, reason, expected.field)
    facts = dict(error.metadata)
    if expected.names_block:
        assert 1 <= int(facts.pop("block")) <= CAPACITY
    assert facts == expected.facts
    assert error.message
    assert (error.retry_after is not None) == (reason == "POOL_EXHAUSTED")


SIMPLE = sorted(_calls(None, None, BlockRefs.empty()))
"""Reasons for which one call on the shared server is enough; the others have tests of their own below."""


@pytest.mark.parametrize("reason", SIMPLE)
def test_sync_client_raises_what_the_server_raised(client: Client, reason: str) -> None:
    """The blocking client raises the class of the reason with everything that it carries."""
    with client.create_session(60.0, owner_key="errors") as session:
        call = _calls(client, session, session.allocate_blocks(1))[reason]

        with pytest.raises(StatepoolError) as caught:
            call()

    _assert_carries(caught.value, reason)


@pytest.mark.parametrize("reason", SIMPLE)
async def test_async_client_raises_what_the_server_raised(server: Server, client: Client, reason: str) -> None:
    """The asyncio client raises the very same."""
    async with (
        AsyncClient(server.target, timeout=DEADLINE_SECONDS) as aio,
        await aio.create_session(60.0, owner_key="errors") as session,
    ):
        call = _calls(aio, session, await session.allocate_blocks(1))[reason]

        with pytest.raises(StatepoolError) as caught:
            await call()

    _assert_carries(caught.value, reason)


def _reasons_of_special_cases() -> set[str]:
    apart = {"BLOCK_NOT_WRITABLE", "SESSION_FENCED", "QUOTA_EXCEEDED", "DS_SPEC_NOT_CONTIGUOUS"}
    return apart | {"SEQUENCE_EXISTS", "BLOCK_IN_SEQUENCE"}


async def test_committed_block_is_not_writable_for_either_client(server: Server, client: Client) -> None:
    """A write to a committed block fails alike in a call and in both clients' streams."""
    with client.create_session(60.0) as session:
        blocks = session.allocate_blocks(1)
        session.commit_blocks(blocks, prefix_hashes=[b"h"], boundary_tokens=16, written_through_tokens=16)
        with pytest.raises(StatepoolError) as caught:
            session.write_blocks(blocks, np.zeros((1, 8), np.uint8))
    _assert_carries(caught.value, "BLOCK_NOT_WRITABLE")

    async with AsyncClient(server.target) as aio, await aio.create_session(60.0) as other:
        blocks = await other.allocate_blocks(1)
        await other.commit_blocks(blocks, prefix_hashes=[b"i"], boundary_tokens=16, written_through_tokens=16)
        with pytest.raises(StatepoolError) as caught:
            await other.write_blocks(blocks, np.zeros((1, 8), np.uint8))
    _assert_carries(caught.value, "BLOCK_NOT_WRITABLE")


async def test_blocks_of_a_sequence_are_refused_to_either_client(server: Server, client: Client) -> None:
    """An id in use, and a block that stands in a block table, are told alike in a stream and in a call."""
    with client.create_session(60.0) as session, session.scheduler() as scheduler:
        scheduler.step(admit=[Admission(1, 4)])
        tables = scheduler.step(schedule=Schedules([1], 4)).tables
        for call in (lambda: scheduler.step(admit=[Admission(1, 4)]), lambda: session.free_blocks(tables.blocks(0))):
            with pytest.raises(StatepoolError) as caught:
                call()
            _assert_carries(caught.value, caught.value.reason)

    async with (
        AsyncClient(server.target) as aio,
        await aio.create_session(60.0) as other,
        other.scheduler() as awaited,
    ):
        await awaited.step(admit=[Admission(1, 4)])
        tables = (await awaited.step(schedule=Schedules([1], 4))).tables
        with pytest.raises(SequenceExistsError) as exists:
            await awaited.step(admit=[Admission(1, 4)])
        with pytest.raises(BlockInSequenceError) as stands:
            await other.free_blocks(tables.blocks(0))
    _assert_carries(exists.value, "SEQUENCE_EXISTS")
    _assert_carries(stands.value, "BLOCK_IN_SEQUENCE")


async def test_fenced_owner_hears_it_from_either_client(server: Server, client: Client) -> None:
    """The former owner is fenced whether it calls blocking or not."""
    former = client.create_session(60.0, owner_key="fenced")
    async with AsyncClient(server.target) as aio, AsyncClient(server.target) as third:
        second = await aio.create_session(60.0, owner_key="fenced", take_over=True)
        with pytest.raises(StatepoolError) as caught:
            former.allocate_blocks(1)
        _assert_carries(caught.value, "SESSION_FENCED")

        await third.create_session(60.0, owner_key="fenced", take_over=True)
        with pytest.raises(StatepoolError) as caught:
            await second.allocate_blocks(1)
        _assert_carries(caught.value, "SESSION_FENCED")


async def test_quota_is_told_by_either_client(tight: Server) -> None:
    """The session too many is refused with the limit."""
    with tight.client() as client:
        for _ in range(3):
            client.create_session(60.0)
        with pytest.raises(StatepoolError) as caught:
            client.create_session(60.0)
        _assert_carries(caught.value, "QUOTA_EXCEEDED")

        async with AsyncClient(tight.target) as aio:
            with pytest.raises(StatepoolError) as caught:
                await aio.create_session(60.0)
    _assert_carries(caught.value, "QUOTA_EXCEEDED")


async def test_ds_specs_are_refused_by_either_client(servers: Servers) -> None:
    """A spec that DS does not have is UNIMPLEMENTED for both."""
    server = servers.shared(*DS_FLAGS, conv_shape=(8, 4))
    with server.client() as client, pytest.raises(StatepoolError) as caught:
        client.compute_copy_specs([[1, 2]], 0, 2)
    _assert_carries(caught.value, "DS_SPEC_NOT_CONTIGUOUS")

    async with AsyncClient(server.target) as aio:
        with pytest.raises(StatepoolError) as caught:
            await aio.compute_copy_specs([[1, 2]], 0, 2)
    _assert_carries(caught.value, "DS_SPEC_NOT_CONTIGUOUS")


def test_every_reason_is_accounted_for() -> None:
    """Each reason of the error tree is provoked here, or it is said where else and why."""
    assert set(SIMPLE) | _reasons_of_special_cases() == set(EXPECTED)
    assert set(EXPECTED) | set(NOT_THROUGH_A_CLIENT) == set(BY_REASON)
    assert not set(EXPECTED) & set(NOT_THROUGH_A_CLIENT)


def test_nobody_there_is_unavailable(tmp_path: Any) -> None:
    """A server that does not answer is UNAVAILABLE without a reason, after the retries."""
    with (
        Client(f"unix:{tmp_path}/nobody.sock", timeout=DEADLINE_SECONDS) as client,
        pytest.raises(StatepoolError) as caught,
    ):
        client.get_pool()

    assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "")
