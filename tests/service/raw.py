"""The API without the client library: stubs of every service on one channel, and what their failures say."""

from collections.abc import Callable

import grpc
import pytest

from statepool.channel import error_of_rpc
from statepool.errors import StatepoolError
from statepool.refs import BlockRefs
from statepool.sync.session import Session
from statepool.v1 import admin_pb2_grpc, block_pb2_grpc, pool_pb2_grpc, session_pb2_grpc, types_pb2
from statepool.wire import refs_to_wire


class Stubs:
    """Stubs on one channel, which sends exactly what it is given: nothing is retried."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.admin = admin_pb2_grpc.AdminServiceStub(channel)
        self.blocks = block_pb2_grpc.BlockServiceStub(channel)
        self.pool = pool_pb2_grpc.PoolServiceStub(channel)
        self.sessions = session_pb2_grpc.SessionServiceStub(channel)


def ref_of(session: Session) -> types_pb2.SessionRef:
    """Writes what proves that a call comes from a session's owner."""
    return types_pb2.SessionRef(session_id=session.session_id, epoch=session.epoch, incarnation=session.incarnation)


def refs(blocks: BlockRefs) -> types_pb2.BlockRefs:
    """Writes block refs."""
    return refs_to_wire(blocks)


def refusal_of(call: Callable[[], object]) -> StatepoolError:
    """Makes a call that must fail and returns the error that its status carries."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return error_of_rpc(caught.value)
