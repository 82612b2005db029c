"""The API without the client library: stubs of every service on one channel, and what their failures say."""

import contextlib
from collections.abc import Callable, Iterator
from queue import SimpleQueue

import grpc
import pytest
import xxhash

from service.servers import DEADLINE_SECONDS, Server, until
from statepool.channel import error_of_rpc
from statepool.errors import StatepoolError
from statepool.handle import SessionHandle
from statepool.refs import BlockRefs
from statepool.sync.session import Session
from statepool.v1 import (
    admin_pb2_grpc,
    block_pb2_grpc,
    pool_pb2,
    pool_pb2_grpc,
    sequence_pb2,
    sequence_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
    transfer_pb2_grpc,
    types_pb2,
)
from statepool.v1 import block_pb2 as pb
from statepool.wire import refs_to_wire


class Stubs:
    """Stubs on one channel, which sends exactly what it is given: nothing is retried."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.admin = admin_pb2_grpc.AdminServiceStub(channel)
        self.blocks = block_pb2_grpc.BlockServiceStub(channel)
        self.pool = pool_pb2_grpc.PoolServiceStub(channel)
        self.sequences = sequence_pb2_grpc.SequenceServiceStub(channel)
        self.sessions = session_pb2_grpc.SessionServiceStub(channel)
        self.transfers = transfer_pb2_grpc.TransferServiceStub(channel)


def ref_of(session: SessionHandle) -> types_pb2.SessionRef:
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


class OpenWrite:
    """A WriteBlocks stream that stays open, and so keeps its blocks pinned, until it is told otherwise."""

    def __init__(self, stubs: Stubs, header: pb.WriteBlocksHeader) -> None:
        self._messages: SimpleQueue[pb.WriteBlocksRequest | None] = SimpleQueue()
        self.call = stubs.blocks.WriteBlocks.future(iter(self._messages.get, None))
        self.send(pb.WriteBlocksRequest(header=header))

    def send(self, message: pb.WriteBlocksRequest) -> None:
        """Sends a message."""
        self._messages.put(message)

    def send_end(self) -> None:
        """Sends the end of the stream; a second time does nothing."""
        self._messages.put(None)

    def finish(self) -> pb.WriteBlocksResponse:
        """Sends the end of the stream and returns the answer."""
        self.send_end()
        return self.call.result(DEADLINE_SECONDS)

    def refusal(self) -> StatepoolError:
        """Waits until the server has ended the stream, and returns why."""
        try:
            return refusal_of(lambda: self.call.result(DEADLINE_SECONDS))
        finally:
            self.send_end()


class OpenKeepAlive:
    """A KeepAlive stream, message by message."""

    def __init__(self, stubs: Stubs) -> None:
        self._requests: SimpleQueue[session_pb2.KeepAliveRequest | None] = SimpleQueue()
        self._call = stubs.sessions.KeepAlive(iter(self._requests.get, None), timeout=DEADLINE_SECONDS)

    def renew(self, ref: types_pb2.SessionRef) -> session_pb2.KeepAliveResult:
        """Renews a session and receives what became of it."""
        self._requests.put(session_pb2.KeepAliveRequest(sessions=[ref]))
        response: session_pb2.KeepAliveResponse = next(self._call)
        return response.results[0]

    def refusal(self) -> StatepoolError:
        """Waits until the server has ended the stream, and returns why."""
        try:
            return refusal_of(lambda: next(self._call))
        finally:
            self._requests.put(None)


class OpenSchedule:
    """A Schedule stream, message by message."""

    def __init__(
        self, stubs: Stubs, ref: types_pb2.SessionRef, first: sequence_pb2.ScheduleRequest | None = None
    ) -> None:
        """Opens a stream.

        Args:
            stubs: Where.
            ref: The session.
            first: What to send instead of an opening message.
        """
        self._requests: SimpleQueue[sequence_pb2.ScheduleRequest | None] = SimpleQueue()
        self._call = stubs.sequences.Schedule(iter(self._requests.get, None), timeout=DEADLINE_SECONDS)
        self.send(first or sequence_pb2.ScheduleRequest(open=ref))

    def send(self, message: sequence_pb2.ScheduleRequest) -> None:
        """Sends a message."""
        self._requests.put(message)

    def receive(self) -> sequence_pb2.ScheduleResponse:
        """Receives the next message."""
        response: sequence_pb2.ScheduleResponse = next(self._call)
        return response

    def answer(self) -> sequence_pb2.ScheduleResponse:
        """Receives the next message that is no notice."""
        while (response := self.receive()).HasField("notice"):
            continue
        return response

    def step(self, step: sequence_pb2.EngineStep) -> sequence_pb2.ScheduleResponse:
        """Sends a step and receives its answer."""
        self.send(sequence_pb2.ScheduleRequest(step=step))
        return self.answer()

    def cut(self) -> None:
        """Breaks the stream off, whatever is under way."""
        self._call.cancel()
        self._requests.put(None)

    def finish(self) -> None:
        """Says that no more messages come, and waits until the server has ended the stream."""
        self._requests.put(None)
        for _ in self._call:
            continue

    def refusal(self) -> StatepoolError:
        """Waits until the server has ended the stream, and returns why."""
        try:
            return refusal_of(lambda: list(iter(self.receive, None)))
        finally:
            self._requests.put(None)


@contextlib.contextmanager
def writing(server: Server, session: Session, blocks: BlockRefs) -> Iterator[OpenWrite]:
    """Opens a WriteBlocks stream, waits until the blocks are pinned, and ends it."""
    with grpc.insecure_channel(server.target) as channel:
        stubs = Stubs(channel)
        before = busy_blocks(stubs)
        stream = OpenWrite(stubs, pb.WriteBlocksHeader(session=ref_of(session), blocks=refs(blocks)))
        until(lambda: busy_blocks(stubs) == before + len(blocks), "the stream to pin its blocks")
        try:
            yield stream
        finally:
            stream.send_end()
            until(lambda: busy_blocks(stubs) == before, "the pins of the stream to go")


def busy_blocks(stubs: Stubs) -> int:
    """Counts the blocks with a copy, read or write running."""
    return stubs.pool.GetPool(pool_pb2.GetPoolRequest()).pool.usage.busy_blocks


def chunk_of(data: bytes, offset: int = 0, block_index: int = 0, checksum: int | None = None) -> pb.WriteBlocksRequest:
    """Writes a chunk, with its true checksum unless told otherwise."""
    checksum = xxhash.xxh3_64_intdigest(data) if checksum is None else checksum
    chunk = pb.WriteBlocksChunk(block_index=block_index, offset=offset, data=data, checksum=checksum)
    return pb.WriteBlocksRequest(chunk=chunk)
