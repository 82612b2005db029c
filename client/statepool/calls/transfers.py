"""Calls of TransferService, and the reader of its byte stream."""

import os
from datetime import UTC
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from statepool import rpc
from statepool.calls.fields import duration, new_request_id
from statepool.calls.images import ImageStream
from statepool.refs import BlockRefs
from statepool.rpc import Call
from statepool.transfers import DataPath, NixlEndpoint, NixlRegion, Received, Transfer, TransferInfo
from statepool.v1 import transfer_pb2 as pb
from statepool.v1.types_pb2 import SessionRef
from statepool.wire import refs_from_wire, refs_to_wire

BlockIds: TypeAlias = NDArray[np.int64]
"""Ids of blocks, ``[n]``."""
Checksums: TypeAlias = NDArray[np.uint64]
"""Checksums of images, ``[n * ranks]``, those of one block side by side."""

_TOKEN_BYTES = 32


def create_transfer(
    session: SessionRef, blocks: BlockRefs | None, sequence_id: int | None, ttl: float, peer: str
) -> Call[Transfer]:
    """Builds CreateTransfer.

    Raises:
        ValueError: Not exactly one of blocks and sequence_id is given, or ttl is no duration.
    """
    if (blocks is None) == (sequence_id is None):
        raise ValueError("exactly one of blocks and sequence_id must be given")
    request = pb.CreateTransferRequest(
        session=session,
        request_id=new_request_id(),
        token=os.urandom(_TOKEN_BYTES),
        ttl=duration(ttl, "ttl"),
        peer=peer,
        blocks=None if blocks is None else refs_to_wire(blocks),
    )
    if sequence_id is not None:
        request.sequence_id = sequence_id
    return rpc.CREATE_TRANSFER.call(request, lambda response: _transfer(response.transfer, request.token))


def receive_transfer(session: SessionRef, transfer: Transfer, source: str, extra_seconds: float) -> Call[Received]:
    """Builds ReceiveTransfer.

    Args:
        session: Who receives.
        transfer: What.
        source: From where, in gRPC's naming.
        extra_seconds: What the bytes may take on top of the timeout.
    """
    request = pb.ReceiveTransferRequest(
        session=session,
        request_id=new_request_id(),
        source=source,
        transfer=_ref(transfer),
        block_count=transfer.block_count,
    )
    return rpc.RECEIVE_TRANSFER.call(request, _received, extra_seconds=extra_seconds)


def describe_transfer(transfer: Transfer) -> Call[tuple[NixlEndpoint, BlockIds]]:
    """Builds DescribeTransfer."""
    return rpc.DESCRIBE_TRANSFER.call(
        pb.DescribeTransferRequest(transfer=_ref(transfer)),
        lambda response: (_endpoint(response.agent), np.array(response.block_ids, np.int64)),
    )


def sum_transfer(transfer: Transfer) -> Call[Checksums]:
    """Builds SumTransfer."""
    return rpc.SUM_TRANSFER.call(
        pb.SumTransferRequest(transfer=_ref(transfer)), lambda response: np.array(response.checksums, np.uint64)
    )


def complete_transfer(transfer: Transfer) -> Call[None]:
    """Builds CompleteTransfer."""
    return rpc.COMPLETE_TRANSFER.call(pb.CompleteTransferRequest(transfer=_ref(transfer)), lambda _response: None)


def cancel_transfer(transfer: Transfer) -> Call[None]:
    """Builds CancelTransfer."""
    return rpc.CANCEL_TRANSFER.call(pb.CancelTransferRequest(transfer=_ref(transfer)), lambda _response: None)


def list_transfers(page_size: int, page_token: str) -> Call[tuple[tuple[TransferInfo, ...], str]]:
    """Builds ListTransfers for one page; the result carries the next page's token, empty after the last."""
    return rpc.LIST_TRANSFERS.call(
        pb.ListTransfersRequest(page_size=page_size, page_token=page_token),
        lambda response: (tuple(map(_info, response.transfers)), response.next_page_token),
    )


class TransferReader(ImageStream):
    """Checks the chunks of a PullBlocks stream: their checksums, and that nothing is missing between them.

    Attributes:
        request: What opens the stream.
    """

    def __init__(
        self,
        transfer: Transfer,
        *,
        tp_rank: int,
        block_index: int,
        offset: int,
        block_count: int | None,
        layout_fingerprint: str,
        image_bytes: int,
    ) -> None:
        """Plans a stream.

        Args:
            transfer: The transfer.
            tp_rank: Tensor-parallel rank whose images are wanted.
            block_index: Image to begin with.
            offset: First byte of it.
            block_count: Images to stream; None: to the last.
            layout_fingerprint: Of the layout that is expected; empty: not checked.
            image_bytes: Bytes of an image.

        Raises:
            ValueError: block_count is given and not positive.
        """
        if block_count is not None and block_count <= 0:
            raise ValueError(f"block_count: {block_count} is not positive")
        self.request = pb.PullBlocksRequest(
            transfer=_ref(transfer),
            tp_rank=tp_rank,
            block_index=block_index,
            offset=offset,
            block_count=block_count or 0,
            layout_fingerprint=layout_fingerprint,
        )
        end = transfer.block_count if block_count is None else block_index + block_count
        super().__init__((end, image_bytes), begin=block_index * image_bytes + offset)


def _ref(transfer: Transfer) -> pb.TransferRef:
    return pb.TransferRef(transfer_id=transfer.transfer_id, token=transfer.token)


def _transfer(message: pb.Transfer, token: bytes) -> Transfer:
    return Transfer(message.transfer_id, token, message.block_count, message.num_tokens)


def _endpoint(message: pb.NixlAgent) -> NixlEndpoint:
    regions = tuple(
        NixlRegion(region.tp_rank, region.address, region.block_bytes, region.block_count) for region in message.regions
    )
    return NixlEndpoint(message.name, message.metadata, message.metadata_sha256, regions)


def _info(message: pb.Transfer) -> TransferInfo:
    return TransferInfo(
        transfer_id=message.transfer_id,
        session_id=message.session_id,
        peer=message.peer,
        block_count=message.block_count,
        num_tokens=message.num_tokens,
        expire_time=message.expire_time.ToDatetime(UTC),
    )


def _received(response: pb.ReceiveTransferResponse) -> Received:
    return Received(refs_from_wire(response.blocks), response.received_bytes, DataPath(response.data_path))
