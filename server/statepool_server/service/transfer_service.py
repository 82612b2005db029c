"""TransferService: states that move between servers."""

import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from functools import partial

import structlog
from google.protobuf.message import Message

from statepool.aio.alarm import Alarm
from statepool.byte_chunks import encode_chunk
from statepool.errors import BadFieldError, BlockIndexOutOfRangeError, FeatureUnavailableError, LayoutMismatchError
from statepool.transfers import NixlEndpoint
from statepool.v1 import transfer_pb2 as pb
from statepool_server import convert
from statepool_server.service.calls import Context
from statepool_server.service.copying import Chore
from statepool_server.service.core import Core
from statepool_server.service.ledger import Kind, MessageCodec
from statepool_server.service.nixl_thread import NixlThread
from statepool_server.service.pinned import ahead
from statepool_server.service.receiving import Receiver
from statepool_server.service.stalls import Stalls
from statepool_server.transfers import LendingTerms, LentStates, Transfer

TOKEN_BYTES = range(16, 65)
"""Lengths that a token may have."""

_log = structlog.get_logger("statepool.transfers")


class TransferService:
    """Handlers of ``statepool.v1.TransferService``."""

    def __init__(
        self,
        core: Core,
        lease_changed: Callable[[], None],
        stalls: Stalls,
        receiver: Receiver,
        nixl: NixlThread | None,
    ) -> None:
        """Builds the handlers.

        Args:
            core: What the services share.
            lease_changed: Called when a transfer may now be the next to end.
            stalls: Bounds how long a peer may stand still.
            receiver: Receives states from other servers.
            nixl: Lets other servers read; None: there is no NIXL.
        """
        self._core = core
        self._lease_changed = lease_changed
        self._stalls = stalls
        self._receiver = receiver
        self._nixl = nixl
        core.register(Kind.CREATE_TRANSFER, pb.CreateTransferRequest, self._create)
        register = core.ledger.register
        register(Kind.COMPLETE_TRANSFER, MessageCodec(pb.CompleteTransferRequest), self._complete, can_be_refused=False)
        register(Kind.CANCEL_TRANSFER, MessageCodec(pb.CancelTransferRequest), self._cancel, can_be_refused=False)

    async def CreateTransfer(self, request: pb.CreateTransferRequest, _context: Context) -> Message:
        """Lends states."""
        core, session_id = self._core, request.session.session_id
        core.pool.check_session(*core.convert.session(request.session))
        reply = core.remembered(request)
        if reply is None:
            core.quotas.check_transfer(session_id)
            blocks = core.convert.refs(request.blocks, "blocks")
            core.quotas.check_blocks(session_id, len(core.pool.committed_by_others(session_id, blocks)))
            reply = core.ledger.perform(Kind.CREATE_TRANSFER, request)
            self._lease_changed()
        return reply.response

    async def PullBlocks(self, request: pb.PullBlocksRequest, context: Context) -> None:
        """Streams lent images in chunks; what was read counts only if it was still lent then."""
        core, ref = self._core, request.transfer
        states = core.pool.check_transfer(ref.transfer_id, ref.token).states
        reads, alarm = self._reads(request, states, self._rank_index(request)), Alarm()
        try:
            async with aclosing(ahead(core.copies, reads)) as chunks:
                async for chunk in chunks:
                    core.pool.check_transfer(ref.transfer_id, ref.token)
                    await self._stalls.moving(context.write(chunk), "the reader", alarm)
        finally:
            alarm.stop()

    async def DescribeTransfer(
        self, request: pb.DescribeTransferRequest, _context: Context
    ) -> pb.DescribeTransferResponse:
        """Tells a server with NIXL where lent states lie."""
        nixl, transfer = self._reachable(request.transfer)
        nixl.lend(transfer.transfer_id, (transfer.terms.expires_ns - time.monotonic_ns()) / 1e9)
        return pb.DescribeTransferResponse(
            incarnation=self._core.incarnation,
            agent=_agent_to_wire(nixl.endpoint),
            block_ids=transfer.states.blocks.block_ids.tolist(),
        )

    async def SumTransfer(self, request: pb.SumTransferRequest, _context: Context) -> pb.SumTransferResponse:
        """Computes checksums of what was read; they count only if it was still lent then."""
        core, (nixl, transfer) = self._core, self._reachable(request.transfer)
        nixl.returned(transfer.transfer_id)
        block_ids = transfer.states.blocks.block_ids.tolist()
        core.copies.check_room()
        work = partial(core.memory.checksums, block_ids)
        nbytes = len(block_ids) * core.description.layout.block.image_bytes * len(core.description.tp_ranks)
        sums = await core.copies.wait(core.copies.submit(work, Chore.CHECKSUM, nbytes))
        core.pool.check_transfer(transfer.transfer_id, transfer.terms.token)
        return pb.SumTransferResponse(incarnation=core.incarnation, checksums=sums.ravel().tolist())

    async def ReceiveTransfer(self, request: pb.ReceiveTransferRequest, _context: Context) -> Message:
        """Fills blocks with states from another server."""
        return await self._receiver.receive(request)

    async def CompleteTransfer(
        self, request: pb.CompleteTransferRequest, _context: Context
    ) -> pb.CompleteTransferResponse:
        """Ends a transfer that has served its purpose."""
        self._core.ledger.perform(Kind.COMPLETE_TRANSFER, request)
        self._returned(request.transfer.transfer_id)
        _log.info("transfer completed", transfer_id=request.transfer.transfer_id)
        return pb.CompleteTransferResponse(incarnation=self._core.incarnation)

    async def CancelTransfer(self, request: pb.CancelTransferRequest, _context: Context) -> pb.CancelTransferResponse:
        """Ends a transfer that has not."""
        self._core.ledger.perform(Kind.CANCEL_TRANSFER, request)
        self._returned(request.transfer.transfer_id)
        _log.info("transfer cancelled", transfer_id=request.transfer.transfer_id)
        return pb.CancelTransferResponse(incarnation=self._core.incarnation)

    async def ListTransfers(self, request: pb.ListTransfersRequest, _context: Context) -> pb.ListTransfersResponse:
        """Lists a page of transfers."""
        core = self._core
        after, size = core.convert.page(request.page_size, request.page_token)
        transfers = core.pool.transfers.page(after, size)
        return pb.ListTransfersResponse(
            incarnation=core.incarnation,
            transfers=map(_to_wire, transfers),
            next_page_token=core.convert.page_token(transfers[-1].transfer_id) if len(transfers) == size else "",
        )

    def _returned(self, transfer_id: int) -> None:
        """Tells all who look after the blocks of a transfer that it has ended."""
        if self._nixl is not None:
            self._nixl.returned(transfer_id)  # who was to read over NIXL may not have come

    # Acts

    def _create(self, request: pb.CreateTransferRequest, now_ns: int) -> tuple[Message, int]:
        core, checked = self._core, self._core.convert
        if len(request.token) not in TOKEN_BYTES:
            raise BadFieldError(f"token has {len(request.token)} bytes, not 16 to 64", field="token")
        session, source = checked.session(request.session), request.WhichOneof("source")
        expires_ns = now_ns + checked.ttl_ns(request.ttl)
        terms = LendingTerms(request.token, checked.name(request.peer, "peer"), expires_ns)
        if source == "blocks" and request.blocks.block_ids:
            transfer = core.pool.lend_blocks(*session, checked.refs(request.blocks, "blocks"), terms)
        elif source == "sequence_id":
            (sequence_id,) = checked.column([request.sequence_id], 1, "sequence_id").tolist()
            transfer = core.pool.lend_sequence(*session, sequence_id, terms)
        else:
            raise BadFieldError("source: blocks or a sequence must be named", field="blocks")
        return pb.CreateTransferResponse(incarnation=core.incarnation, transfer=_to_wire(transfer)), 0

    def _complete(self, request: pb.CompleteTransferRequest, _now_ns: int) -> None:
        self._core.pool.complete_transfer(request.transfer.transfer_id, request.transfer.token)

    def _cancel(self, request: pb.CancelTransferRequest, _now_ns: int) -> None:
        self._core.pool.cancel_transfer(request.transfer.transfer_id, request.transfer.token)

    # Reading

    def _reachable(self, ref: pb.TransferRef) -> tuple[NixlThread, Transfer]:
        transfer = self._core.pool.check_transfer(ref.transfer_id, ref.token)
        if self._nixl is None:
            raise FeatureUnavailableError("the server was started without --nixl-devices", field="transfer")
        if not self._nixl.is_alive:
            raise FeatureUnavailableError("the thread of NIXL has died; a restart mends it", field="transfer")
        if not transfer.states.are_whole_blocks:
            raise FeatureUnavailableError("a state is spread over two blocks", field="transfer")
        return self._nixl, transfer

    def _rank_index(self, request: pb.PullBlocksRequest) -> int:
        known = self._core.description
        fingerprint = known.layout.block.fingerprint
        if request.layout_fingerprint not in ("", fingerprint):
            raise LayoutMismatchError(
                f"layout {request.layout_fingerprint[:64]} is expected, the pool has {fingerprint}",
                field="layout_fingerprint",
            )
        if request.tp_rank not in known.tp_ranks:
            raise LayoutMismatchError(
                f"tp_rank {request.tp_rank}: the server holds {list(known.tp_ranks)}", field="tp_rank"
            )
        return known.tp_ranks.index(request.tp_rank)

    def _reads(
        self, request: pb.PullBlocksRequest, states: LentStates, rank_index: int
    ) -> Iterator[tuple[Callable[[], bytes], int]]:
        image_bytes, chunk_bytes = self._core.description.layout.block.image_bytes, self._core.limits.max_chunk_bytes
        first, offset = request.block_index, request.offset
        end = first + request.block_count if request.block_count else len(states)
        if not (first < end <= len(states) and offset < image_bytes):
            raise BlockIndexOutOfRangeError(
                f"images {first} to {end} from byte {offset}: there are {len(states)} of {image_bytes} bytes",
                field="block_index",
            )
        return (
            (partial(self._read, rank_index, states, index, start, length), length)
            for index in range(first, end)
            for start in range(offset if index == first else 0, image_bytes, chunk_bytes)
            for length in [min(chunk_bytes, image_bytes - start)]
        )

    def _read(self, rank_index: int, states: LentStates, index: int, offset: int, length: int) -> bytes:
        data = self._core.memory.read_lent(
            rank_index,
            int(states.blocks.block_ids[index]),
            int(states.temporal_blocks.block_ids[index]),
            int(states.token_biases[index]),
            offset,
            length,
        )
        return encode_chunk(
            pb.PullBlocksResponse(incarnation=self._core.incarnation, block_index=index, offset=offset), data
        )


def _agent_to_wire(endpoint: NixlEndpoint) -> pb.NixlAgent:
    regions = [
        pb.NixlRegion(
            tp_rank=region.tp_rank,
            address=region.address,
            block_bytes=region.block_bytes,
            block_count=region.block_count,
        )
        for region in endpoint.regions
    ]
    return pb.NixlAgent(
        name=endpoint.name, metadata=endpoint.metadata, metadata_sha256=endpoint.metadata_sha256, regions=regions
    )


def _to_wire(transfer: Transfer) -> pb.Transfer:
    return pb.Transfer(
        transfer_id=transfer.transfer_id,
        session_id=transfer.session_id,
        peer=transfer.terms.peer,
        block_count=len(transfer.states),
        num_tokens=transfer.states.num_tokens,
        expire_time=convert.wall_clock(transfer.terms.expires_ns),
    )
