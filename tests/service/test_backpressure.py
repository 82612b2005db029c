"""Guarantee: copy threads have a bounded queue; what does not fit is refused at once, before anything has changed."""

import json
from pathlib import Path

import grpc
from google.protobuf.duration_pb2 import Duration

from service.conftest import plain_stubs
from service.raw import Stubs
from service.servers import DEADLINE_SECONDS, Servers, until
from statepool import OverloadedError
from statepool.channel import error_of_rpc
from statepool.v1 import block_pb2, pool_pb2, session_pb2

LARGE = {"name": "state", "kind": "temporal", "shape": (32, 1024, 1024), "dtype": "float32"}
"""128 MiB: zeroing it takes many times as long as the next request needs to arrive."""


def test_full_queue_of_copies(servers: Servers, tmp_path: Path) -> None:
    """While the one place in the queue is taken, a call that needs memory work is OVERLOADED and allocates nothing."""
    model = tmp_path / "config.json"
    model.write_text(json.dumps({"model_type": "custom", "states": [LARGE]}), encoding="utf-8")
    settings = ("--model-config", str(model), "--tp-size", "1", "--blocks", "4", "--max-queued-copies", "1")

    with plain_stubs(servers.shared(*settings)) as stubs:
        session = stubs.sessions.CreateSession(session_pb2.CreateSessionRequest(ttl=Duration(seconds=60))).session.ref
        request = block_pb2.AllocateBlocksRequest(session=session, count=1)
        errors: list[grpc.RpcError] = []
        until(lambda: _allocate_twice(stubs, request, errors), "a call to come while another zeroes")
        usage = stubs.pool.GetPool(pool_pb2.GetPoolRequest()).pool.usage
        stubs.sessions.DeleteSession(session_pb2.DeleteSessionRequest(session=session))

    (error,) = map(error_of_rpc, errors)
    assert isinstance(error, OverloadedError)
    assert error.retry_after is not None
    assert usage.held_blocks == 1


def _allocate_twice(stubs: Stubs, request: block_pb2.AllocateBlocksRequest, errors: list[grpc.RpcError]) -> bool:
    """Sends two requests at once; where the second came late, both were served, and their blocks are given back."""
    calls = [stubs.blocks.AllocateBlocks.future(request) for _ in range(2)]
    served = []
    for call in calls:
        try:
            served.append(call.result(DEADLINE_SECONDS).blocks)
        except grpc.RpcError as error:
            errors.append(error)
            return True
    for blocks in served:
        stubs.blocks.FreeBlocks(block_pb2.FreeBlocksRequest(session=request.session, blocks=blocks))
    return False
