"""Calls of BlockService, without its byte streams (`statepool.calls.images`)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from statepool import rpc
from statepool.calls.fields import column, duration, new_request_id
from statepool.columns import FIXED32, FIXED64, columns_of_message, message_of_columns
from statepool.refs import BlockRefs
from statepool.results import Commit, CopySpecs, Eviction, Hit
from statepool.rpc import Call
from statepool.v1 import block_pb2 as pb
from statepool.v1.types_pb2 import SessionRef
from statepool.wire import refs_from_wire, refs_to_wire

BlockIds = ArrayLike | Sequence[ArrayLike]
"""One request's block table ``[n]``, or a batch of tables of any lengths."""


def allocate_blocks(session: SessionRef, count: int, zero: bool, max_wait: float | None) -> Call[BlockRefs]:
    """Builds AllocateBlocks."""
    request = pb.AllocateBlocksRequest(session=session, request_id=new_request_id(), count=count, zero=zero)
    if max_wait is not None:
        request.max_wait.CopyFrom(duration(max_wait, "max_wait"))
    return rpc.ALLOCATE_BLOCKS.call(
        request, lambda response: refs_from_wire(response.blocks), extra_seconds=max_wait or 0.0
    )


def free_blocks(session: SessionRef, blocks: BlockRefs) -> Call[None]:
    """Builds FreeBlocks."""
    request = pb.FreeBlocksRequest(session=session, request_id=new_request_id(), blocks=refs_to_wire(blocks))
    return rpc.FREE_BLOCKS.call(request, _nothing)


def retain_blocks(session: SessionRef, blocks: BlockRefs) -> Call[None]:
    """Builds RetainBlocks."""
    request = pb.RetainBlocksRequest(session=session, request_id=new_request_id(), blocks=refs_to_wire(blocks))
    return rpc.RETAIN_BLOCKS.call(request, _nothing)


def commit_blocks(
    session: SessionRef,
    blocks: BlockRefs,
    prefix_hashes: Sequence[bytes],
    boundary_tokens: ArrayLike,
    written_through_tokens: ArrayLike,
    namespace: str,
) -> Call[Commit]:
    """Builds CommitBlocks."""
    boundaries = column(boundary_tokens, "boundary_tokens").astype(FIXED64)
    written = column(written_through_tokens, "written_through_tokens").astype(FIXED64)
    request = message_of_columns(pb.CommitBlocksRequest, {6: boundaries, 7: written})
    request.session.CopyFrom(session)
    request.request_id = new_request_id()
    request.blocks.CopyFrom(refs_to_wire(blocks))
    request.namespace = namespace
    request.prefix_hashes.extend(prefix_hashes)
    return rpc.COMMIT_BLOCKS.call(request, _commit)


def lookup_prefix(session: SessionRef, hashes: Sequence[bytes], namespace: str) -> Call[Hit | None]:
    """Builds LookupPrefix."""
    request = pb.LookupPrefixRequest(
        session=session, request_id=new_request_id(), namespace=namespace, prefix_hashes=hashes
    )
    return rpc.LOOKUP_PREFIX.call(request, lambda response: _hit(response, hashes))


def evict_blocks(
    session: SessionRef, blocks: BlockRefs | None, prefix_hashes: Sequence[bytes], namespace: str
) -> Call[Eviction]:
    """Builds EvictBlocks."""
    request = pb.EvictBlocksRequest(
        session=session,
        request_id=new_request_id(),
        blocks=None if blocks is None else refs_to_wire(blocks),
        namespace=namespace,
        prefix_hashes=prefix_hashes,
    )
    return rpc.EVICT_BLOCKS.call(request, lambda response: Eviction(response.unlisted_blocks, response.freed_blocks))


def copy_blocks(
    session: SessionRef, src: BlockRefs, dst: BlockRefs, token_bias: ArrayLike, temporal_src: BlockRefs | None
) -> Call[int]:
    """Builds CopyBlocks; the result is the number of bytes written, on all ranks."""
    request = pb.CopyBlocksRequest(
        session=session,
        request_id=new_request_id(),
        src=refs_to_wire(src),
        dst=refs_to_wire(dst),
        token_biases=column(token_bias, "token_bias").tolist(),
        temporal_src=None if temporal_src is None else refs_to_wire(temporal_src),
    )
    return rpc.COPY_BLOCKS.call(request, lambda response: response.copied_bytes)


def compute_copy_specs(
    block_ids: BlockIds, cur_block_idx: ArrayLike, num_accepted_tokens: ArrayLike, rank_index: int
) -> Call[CopySpecs]:
    """Builds ComputeCopySpecs.

    Raises:
        ValueError: Something is not a column of integers of 32 bits.
    """
    tables = _tables(block_ids)
    ids = np.concatenate(tables) if tables else np.empty(0, np.int64)
    request = message_of_columns(pb.ComputeCopySpecsRequest, {1: ids.astype(FIXED32)})
    request.row_offsets.extend(np.cumsum([0, *map(len, tables)]).tolist())
    request.cur_block_idx.extend(column(cur_block_idx, "cur_block_idx").tolist())
    request.num_accepted_tokens.extend(column(num_accepted_tokens, "num_accepted_tokens").tolist())
    request.rank_index = rank_index
    return rpc.COMPUTE_COPY_SPECS.call(request, lambda response: _copy_specs(response, len(tables)))


def _tables(block_ids: Any) -> list[NDArray[np.int64]]:
    """Splits a batch into its tables; a flat list or array is a batch of one."""
    is_batch = len(block_ids) > 0 and np.ndim(block_ids[0]) > 0
    return [column(row, "block_ids") for row in block_ids] if is_batch else [column(block_ids, "block_ids")]


def _nothing(_response: object) -> None:
    return None


def _commit(response: pb.CommitBlocksResponse) -> Commit:
    return Commit(refs_from_wire(response.holders), np.array(response.duplicate_rows, np.int64))


def _hit(response: pb.LookupPrefixResponse, hashes: Sequence[bytes]) -> Hit | None:
    if not response.HasField("hit"):
        return None
    return Hit(response.hit.hash_index, hashes[response.hit.hash_index], refs_from_wire(response.hit.block))


def _copy_specs(response: pb.ComputeCopySpecsResponse, requests: int) -> CopySpecs:
    # The columns are read from the message's bytes, in which nothing may stand before them.
    response.ClearField("incarnation")
    columns = columns_of_message(response, {2: FIXED64, 3: FIXED64, 4: FIXED64})
    shape = requests, response.tensor_count
    return CopySpecs(columns[2].reshape(shape), columns[3].reshape(shape), columns[4].reshape(shape))
