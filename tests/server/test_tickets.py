"""Guarantee: a request is recognised by what it asks for, under whichever incarnation it comes."""

import pytest
from google.protobuf.message import Message

from statepool.v1 import block_pb2, sequence_pb2, types_pb2
from statepool_server.service.replays import Replays

SESSION = types_pb2.SessionRef(session_id=3, epoch=2, incarnation=7)


def _digest(request: Message) -> bytes:
    return Replays.ticket(3, "id", request).digest


def test_the_incarnation_is_not_part_of_a_request() -> None:
    """A request that is sent again after a restart is the same; and making its ticket leaves it as it was."""
    before = block_pb2.AllocateBlocksRequest(session=SESSION, count=4)
    after = block_pb2.AllocateBlocksRequest(session=types_pb2.SessionRef(session_id=3, epoch=2, incarnation=8), count=4)

    assert _digest(before) == _digest(after)
    assert (before.session.incarnation, after.session.incarnation) == (7, 8)


@pytest.mark.parametrize(
    "other",
    [
        block_pb2.AllocateBlocksRequest(session=SESSION, count=5),
        block_pb2.AllocateBlocksRequest(session=types_pb2.SessionRef(session_id=3, epoch=1, incarnation=7), count=4),
        sequence_pb2.StepRequest(session=SESSION),
    ],
)
def test_everything_else_is(other: Message) -> None:
    """Another content, epoch or kind of request is another request."""
    assert _digest(other) != _digest(block_pb2.AllocateBlocksRequest(session=SESSION, count=4))
