"""Guarantee: a request that comes again under its id gets the same bytes again and changes nothing."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from service.conftest import plain_stubs
from service.raw import Stubs, ref_of, refs, refusal_of
from service.servers import CAPACITY, Server
from statepool import (
    BlockRefs,
    Client,
    GenerationStaleError,
    PoolExhaustedError,
    RequestIdReusedError,
    Session,
)
from statepool.v1 import block_pb2 as pb
from statepool.v1 import pool_pb2, session_pb2, transfer_pb2

Act = Callable[[Message], Message]
"""Sends a request."""
Requests = dict[str, tuple[Act, Message, Message]]
"""By RPC: how it is called, a request that takes effect, and another one that may not have its id."""


@pytest.fixture
def requests(server: Server, session: Session, stubs: Stubs) -> Iterator[Requests]:
    """Lists each mutating RPC with a request that takes effect and another one that may not have its id."""
    ref, blocks = ref_of(session), session.allocate_blocks(5)
    committed, one, more = blocks[:1], refs(blocks[1:2]), refs(blocks[2:4])
    session.commit_blocks(committed, prefix_hashes=[b"h"], boundary_tokens=16, written_through_tokens=16)
    commit: dict[str, Any] = {"session": ref, "boundary_tokens": [16], "written_through_tokens": [16]}
    ttl = Duration(nanos=50_000_000)
    lent = session.create_transfer(blocks[4:], ttl=60.0)  # a server may receive from itself
    lent_ref = transfer_pb2.TransferRef(transfer_id=lent.transfer_id, token=lent.token)
    receive: dict[str, Any] = {"session": ref, "source": server.target, "transfer": lent_ref}
    table: dict[str, tuple[Any, Message, Message]] = {
        "CreateSession": (
            stubs.sessions.CreateSession,
            session_pb2.CreateSessionRequest(ttl=ttl),
            session_pb2.CreateSessionRequest(ttl=ttl, owner_key="other"),
        ),
        "AllocateBlocks": (
            stubs.blocks.AllocateBlocks,
            pb.AllocateBlocksRequest(session=ref, count=2),
            pb.AllocateBlocksRequest(session=ref, count=3),
        ),
        "FreeBlocks": (
            stubs.blocks.FreeBlocks,
            pb.FreeBlocksRequest(session=ref, blocks=one),
            pb.FreeBlocksRequest(session=ref, blocks=more),
        ),
        "RetainBlocks": (
            stubs.blocks.RetainBlocks,
            pb.RetainBlocksRequest(session=ref, blocks=one),
            pb.RetainBlocksRequest(session=ref, blocks=more),
        ),
        "CommitBlocks": (
            stubs.blocks.CommitBlocks,
            pb.CommitBlocksRequest(blocks=one, prefix_hashes=[b"i"], **commit),
            pb.CommitBlocksRequest(blocks=one, prefix_hashes=[b"j"], **commit),
        ),
        "LookupPrefix": (
            stubs.blocks.LookupPrefix,
            pb.LookupPrefixRequest(session=ref, prefix_hashes=[b"h"]),
            pb.LookupPrefixRequest(session=ref, prefix_hashes=[b"j"]),
        ),
        "EvictBlocks": (
            stubs.blocks.EvictBlocks,
            pb.EvictBlocksRequest(session=ref, prefix_hashes=[b"h"]),
            pb.EvictBlocksRequest(session=ref, prefix_hashes=[b"j"]),
        ),
        "CopyBlocks": (
            stubs.blocks.CopyBlocks,
            pb.CopyBlocksRequest(session=ref, src=one, dst=one, token_biases=[1]),
            pb.CopyBlocksRequest(session=ref, src=one, dst=one, token_biases=[2]),
        ),
        "CreateTransfer": (
            stubs.transfers.CreateTransfer,
            transfer_pb2.CreateTransferRequest(session=ref, blocks=more, ttl=ttl, token=bytes(16)),
            transfer_pb2.CreateTransferRequest(session=ref, blocks=more, ttl=ttl, token=bytes(17)),
        ),
        "ReceiveTransfer": (
            stubs.transfers.ReceiveTransfer,
            transfer_pb2.ReceiveTransferRequest(block_count=1, **receive),
            transfer_pb2.ReceiveTransferRequest(block_count=2, **receive),
        ),
    }
    yield {name: (act, _with_id(request), _with_id(other)) for name, (act, request, other) in table.items()}
    with contextlib.suppress(grpc.RpcError):  # where the test has received it, it is over
        stubs.transfers.CancelTransfer(transfer_pb2.CancelTransferRequest(transfer=lent_ref))


def _with_id(request: Any, request_id: str = "the-id") -> Any:
    request.request_id = request_id
    return request


def _world(stubs: Stubs, session: Session, image: BlockRefs) -> bytes:
    """Says everything about the pool that a call could have changed, deterministically."""
    blocks = stubs.pool.ListBlocks(pool_pb2.ListBlocksRequest(states=[1, 2, 3, 4, 5]))  # type: ignore[list-item]
    sessions = stubs.sessions.GetSession(session_pb2.GetSessionRequest(session_id=session.session_id)).session
    return b"".join(
        (
            blocks.SerializeToString(deterministic=True),
            bytes(f"{sessions.ref.epoch} {sessions.block_count}", "ascii"),
            session.read_images(image).tobytes(),
        )
    )


NAMES = (
    "CreateSession",
    "AllocateBlocks",
    "FreeBlocks",
    "RetainBlocks",
    "CommitBlocks",
    "LookupPrefix",
    "EvictBlocks",
    "CopyBlocks",
    "CreateTransfer",
    "ReceiveTransfer",
)


@pytest.mark.parametrize("name", NAMES)
def test_repeated_request_gets_the_same_bytes_and_changes_nothing(
    requests: Requests, session: Session, stubs: Stubs, name: str
) -> None:
    """The second answer is the first, byte for byte, and the pool is as the first left it."""
    witness = session.allocate_blocks(1)
    session.write_blocks(witness, np.arange(256, dtype=np.uint8)[None])
    act, request, _ = requests[name]

    first = act(request)
    world = _world(stubs, session, witness)
    again = act(request)

    assert again.SerializeToString(deterministic=True) == first.SerializeToString(deterministic=True)
    assert _world(stubs, session, witness) == world


def test_every_mutating_rpc_is_repeated_here(requests: Requests) -> None:
    """Every RPC whose request has a request_id is in the table of this file."""
    modules = (pb, pool_pb2, session_pb2, transfer_pb2)
    mutating = {
        method.name
        for module in modules
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if "request_id" in method.input_type.fields_by_name
    }

    assert mutating == set(NAMES) == set(requests)


@pytest.mark.parametrize("name", NAMES)
def test_reused_id_is_refused(requests: Requests, session: Session, name: str) -> None:
    """The id of one request with another payload is REQUEST_ID_REUSED."""
    act, request, other = requests[name]
    request_id = f"reused-{session.session_id}-{name}"
    act(_with_id(request, request_id))

    error = refusal_of(lambda: act(_with_id(other, request_id)))

    assert isinstance(error, RequestIdReusedError)
    assert error.field == "request_id"


def test_ids_of_rpcs_are_one_space(session: Session, stubs: Stubs) -> None:
    """The id of one RPC cannot be used for another one, even with the same fields."""
    blocks = refs(session.allocate_blocks(1))
    stubs.blocks.RetainBlocks(pb.RetainBlocksRequest(session=ref_of(session), request_id="x", blocks=blocks))

    free = pb.FreeBlocksRequest(session=ref_of(session), request_id="x", blocks=blocks)
    error = refusal_of(lambda: stubs.blocks.FreeBlocks(free))

    assert isinstance(error, RequestIdReusedError)


def test_sessions_have_ids_of_their_own(session: Session, other: Session, stubs: Stubs) -> None:
    """The same id in two sessions names two requests."""
    requests = [pb.AllocateBlocksRequest(session=ref_of(one), request_id="x", count=1) for one in (session, other)]

    first, second = (stubs.blocks.AllocateBlocks(request).blocks.block_ids[0] for request in requests)

    assert first != second


def test_no_id_means_no_memory(client: Client, session: Session, stubs: Stubs) -> None:
    """Without an id every request takes effect."""
    for _ in range(2):
        stubs.blocks.AllocateBlocks(pb.AllocateBlocksRequest(session=ref_of(session), count=1))

    assert client.get_pool().usage.held_blocks == 2


def test_failed_calls_are_not_remembered(session: Session, stubs: Stubs) -> None:
    """A refused request may come again with its id and then succeed."""
    blocks = session.allocate_blocks(CAPACITY)
    request = pb.AllocateBlocksRequest(session=ref_of(session), request_id="retry", count=1)
    assert isinstance(refusal_of(lambda: stubs.blocks.AllocateBlocks(request)), PoolExhaustedError)
    session.free_blocks(blocks[:1])

    answer = stubs.blocks.AllocateBlocks(request)

    assert answer.blocks.block_ids == [int(blocks.block_ids[0])]


def test_repeated_answer_outlives_its_blocks(session: Session, stubs: Stubs) -> None:
    """The answer is repeated also when its blocks are freed since; its refs are stale then, and so harmless."""
    request = pb.AllocateBlocksRequest(session=ref_of(session), request_id="old", count=1)
    blocks = stubs.blocks.AllocateBlocks(request).blocks
    free = pb.FreeBlocksRequest(session=ref_of(session), blocks=blocks)
    stubs.blocks.FreeBlocks(free)

    again = stubs.blocks.AllocateBlocks(request).blocks

    assert again == blocks
    assert isinstance(refusal_of(lambda: stubs.blocks.FreeBlocks(free)), GenerationStaleError)


def test_memory_of_answers_is_bounded(tight: Server) -> None:
    """With max_replays 2 the third id pushes the first out, which then takes effect again."""
    with tight.client() as client, client.create_session(60.0) as session, plain_stubs(tight) as stubs:
        requests = [
            pb.AllocateBlocksRequest(session=ref_of(session), request_id=request_id, count=1) for request_id in "abc"
        ]
        first = [stubs.blocks.AllocateBlocks(request) for request in requests]

        again = [stubs.blocks.AllocateBlocks(request) for request in (requests[2], requests[1], requests[0])]

        assert [again[0], again[1]] == [first[2], first[1]]
        assert again[2] != first[0]
        assert client.get_pool().usage.held_blocks == 4
