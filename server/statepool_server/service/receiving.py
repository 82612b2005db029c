"""Receives states from other servers: allocates blocks, has them filled, and gives them up where that fails."""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakValueDictionary

import structlog
from google.protobuf.message import Message

from statepool import AsyncClient
from statepool.errors import (
    BadFieldError,
    StatepoolError,
)
from statepool.transfers import DataPath, Transfer
from statepool.v1 import transfer_pb2 as pb
from statepool.wire import refs_to_wire
from statepool_server.recency import Ids
from statepool_server.service.core import Core
from statepool_server.service.data_paths import Path, PathFailedError, Sink
from statepool_server.service.ledger import Kind, MessageCodec, ValueCodec
from statepool_server.service.path_choice import PathChoice
from statepool_server.service.peers import Peer, Peers
from statepool_server.service.pinned import PinnedWork
from statepool_server.service.replays import Reply
from statepool_server.service.sinks import sink_for
from statepool_server.work import MemoryWork

_COMPLETE_SECONDS = 1.0
"""What telling the source may take; if it fails, the lease ends by itself."""

_log = structlog.get_logger("statepool.transfers")


@dataclass(frozen=True, slots=True)
class Received:
    """The request of `Kind.TRANSFER_RECEIVED`."""

    work: int
    """The work of the reception."""
    request: bytes
    """Its `ReceiveTransferRequest`."""
    nbytes: int
    """Bytes that have come."""
    data_path: DataPath = DataPath.GRPC
    """How."""


class Receiver:
    """Receives states.

    The blocks belong to the session from the first moment and are pinned until everything has come, so that they can
    neither be read nor committed before; one act makes them usable. Whatever else ends the reception frees them.
    """

    def __init__(self, core: Core, peers: Peers, choice: PathChoice, patience: float) -> None:
        """Makes a receiver.

        Args:
            core: What the services share.
            peers: Connections to sources.
            choice: Ways for the bytes.
            patience: Seconds without a byte after which a source is given up.
        """
        self._core = core
        self._peers = peers
        self._choice = choice
        self._patience = patience
        self._turns: WeakValueDictionary[tuple[int, str], asyncio.Lock] = WeakValueDictionary()
        core.ledger.register(Kind.RECEIVE_TRANSFER, MessageCodec(pb.ReceiveTransferRequest), self._begin)
        core.ledger.register(Kind.TRANSFER_RECEIVED, ValueCodec(Received), self._received)

    async def receive(self, request: pb.ReceiveTransferRequest) -> Message:
        """Receives the states of a transfer, or gives the answer that the request got before, or is about to get.

        Raises:
            PeerUntrustedError: The source is not one that may be connected to.
            StatepoolError: Why they cannot be received, by the source's word or this pool's.
        """
        core = self._core
        async with self._turn(request):
            session = core.pool.sessions.owned(*core.convert.session(request.session))
            core.convert.batch(request.block_count, "block_count")
            if request.block_count == 0:
                raise BadFieldError("block_count must be at least 1", field="block_count")
            reply = core.remembered(request)
            if reply is None:
                address = self._peers.check(request.source, session.tenant)
                async with self._peers.connected(address) as peer:
                    reply = await self._receive(request, peer)
        return reply.response

    def _turn(self, request: pb.ReceiveTransferRequest) -> contextlib.AbstractAsyncContextManager[None]:
        """Lets a request that comes again wait for the first: it then finds that one's answer, or has its own turn."""
        if not request.request_id:
            return contextlib.nullcontext()
        return self._turns.setdefault((request.session.session_id, request.request_id), asyncio.Lock())

    async def _receive(self, request: pb.ReceiveTransferRequest, peer: Peer) -> Reply:
        core, session = self._core, self._core.convert.session(request.session)
        theirs = await peer.known_pool(self._patience)
        sink, error = sink_for(core, theirs), None
        for path in self._choice.paths(theirs, lambda: core.pool.check_session(*session)):
            try:
                return await self._receive_by(path, request, peer.client, sink)
            except PathFailedError as failure:
                error = self._choice.failed(path.kind, failure)
        assert error is not None  # noqa: S101 — there is a path
        raise error

    async def _receive_by(
        self, path: Path, request: pb.ReceiveTransferRequest, source: AsyncClient, sink: Callable[[Ids], Sink]
    ) -> Reply:
        """Receives into blocks of its own: those of a way that has failed may still be written."""
        core, transfer = self._core, _transfer(request)
        core.quotas.check_blocks(request.session.session_id, request.block_count)
        number: int = core.ledger.perform(Kind.RECEIVE_TRANSFER, request)
        async with PinnedWork(core, number) as pinned:
            nbytes = await path.pull(source, transfer, sink(core.works.work(number).received_blocks), pinned)
            received = Received(number, request.SerializeToString(), nbytes, path.kind)
            reply: Reply = core.ledger.perform(Kind.TRANSFER_RECEIVED, received)
        self._choice.came(path.kind, nbytes)
        await self._tell(source, transfer)
        return reply

    async def _tell(self, source: AsyncClient, transfer: Transfer) -> None:
        """Tells the source that it may have its blocks back; if it is not heard, its lease ends by itself."""
        try:
            await source.complete_transfer(transfer, timeout=_COMPLETE_SECONDS)
        except StatepoolError as error:
            _log.info("transfer not completed", transfer_id=transfer.transfer_id, error=error.message)

    # Acts

    def _begin(self, request: pb.ReceiveTransferRequest, _now_ns: int) -> int:
        core, session = self._core, self._core.convert.session(request.session)
        refs = core.pool.allocate(*session, request.block_count)
        pin = core.pool.pin_write(*session, refs)
        return core.works.begin(MemoryWork(session[0], pin, received_blocks=refs.block_ids), is_stream=True)

    def _received(self, received: Received, _now_ns: int) -> Reply:
        core, request = self._core, pb.ReceiveTransferRequest.FromString(received.request)
        session_id, epoch = core.convert.session(request.session)
        core.pool.check_session(session_id, epoch)  # who has lost it gets nothing, and the blocks go
        ticket = core.replays.ticket(session_id, request.request_id, request)
        block_ids = core.works.work(received.work).received_blocks
        core.works.finish(received.work)
        response = pb.ReceiveTransferResponse(
            incarnation=core.incarnation,
            blocks=refs_to_wire(core.pool.blocks.refs(block_ids)),
            received_bytes=received.nbytes,
            data_path=pb.DataPath.ValueType(received.data_path),
        )
        return core.replays.keep(ticket, response)


def _transfer(request: pb.ReceiveTransferRequest) -> Transfer:
    return Transfer(request.transfer.transfer_id, request.transfer.token, request.block_count, 0)
