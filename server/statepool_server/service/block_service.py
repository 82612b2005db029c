"""BlockService: allocate, share, commit, find and copy blocks."""

import numpy as np
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from statepool.columns import FIXED64, message_of_columns
from statepool.copies import CopyPlan, check_plan, copied_bytes, copy_specs
from statepool.errors import BadFieldError, BatchTooLargeError, PoolExhaustedError
from statepool.v1 import block_pb2 as pb
from statepool.wire import refs_to_wire
from statepool_server import convert
from statepool_server.service.calls import Context, time_remaining
from statepool_server.service.core import Core
from statepool_server.service.ledger import Kind
from statepool_server.service.replays import Reply
from statepool_server.service.stalls import Stalls
from statepool_server.service.streams import BlockStreams
from statepool_server.service.verifying import Verifier
from statepool_server.work import MemoryWork

MAX_WAIT_NS = 3600 * 10**9
"""Longest wait for blocks, in nanoseconds; the caller's deadline is usually much shorter."""


class BlockService(BlockStreams):
    """Handlers of ``statepool.v1.BlockService``; those of byte streams are inherited."""

    def __init__(self, core: Core, stalls: Stalls, verifier: Verifier) -> None:
        super().__init__(core, stalls)
        self._core = core
        self._verifier = verifier
        core.register(Kind.ALLOCATE_BLOCKS, pb.AllocateBlocksRequest, self._allocate)
        core.register(Kind.FREE_BLOCKS, pb.FreeBlocksRequest, self._free)
        core.register(Kind.RETAIN_BLOCKS, pb.RetainBlocksRequest, self._retain)
        core.register(Kind.COMMIT_BLOCKS, pb.CommitBlocksRequest, self._commit)
        core.register(Kind.LOOKUP_PREFIX, pb.LookupPrefixRequest, self._lookup)
        core.register(Kind.EVICT_BLOCKS, pb.EvictBlocksRequest, self._evict)
        core.register(Kind.COPY_BLOCKS, pb.CopyBlocksRequest, self._copy)

    async def AllocateBlocks(self, request: pb.AllocateBlocksRequest, context: Context) -> Message:
        """Hands out blocks, zeroed, now or within max_wait."""
        core = self._core
        session = core.convert.session(request.session)
        core.convert.batch(request.count, "count")
        if request.count == 0:
            raise BadFieldError("count must be at least 1", field="count")
        max_wait = _wait_seconds(request.max_wait, context)
        core.pool.check_session(*session)
        reply = core.remembered(request)
        if reply is None:
            if request.count > core.pool.capacity:
                max_wait = 0.0  # no wait can help
            try:
                reply = await core.waiting.run(
                    lambda: self._attempt(request, context), lambda: core.pool.check_session(*session), max_wait
                )
            except PoolExhaustedError as error:
                raise self._counted(error, request.count) from error
        return await core.answer(reply, "the allocation")

    async def FreeBlocks(self, request: pb.FreeBlocksRequest, _context: Context) -> Message:
        """Drops references."""
        return self._core.once(Kind.FREE_BLOCKS, request).response

    async def RetainBlocks(self, request: pb.RetainBlocksRequest, _context: Context) -> Message:
        """Takes references."""
        return self._core.once(Kind.RETAIN_BLOCKS, request, gains=len(request.blocks.block_ids)).response

    async def CommitBlocks(self, request: pb.CommitBlocksRequest, _context: Context) -> Message:
        """Makes blocks immutable and findable."""
        return self._core.once(Kind.COMMIT_BLOCKS, request).response

    async def LookupPrefix(self, request: pb.LookupPrefixRequest, _context: Context) -> Message:
        """Finds and references the deepest prefix."""
        core = self._core
        core.pool.check_session(*core.convert.session(request.session))
        namespace, hashes = self._prefixes(request)
        await self._verifier.vouch_for(lambda: core.pool.found(namespace, hashes))
        return core.once(Kind.LOOKUP_PREFIX, request, gains=len(core.pool.found(namespace, hashes))).response

    async def EvictBlocks(self, request: pb.EvictBlocksRequest, _context: Context) -> Message:
        """Takes blocks out of the prefix index."""
        return self._core.once(Kind.EVICT_BLOCKS, request).response

    async def CopyBlocks(self, request: pb.CopyBlocksRequest, context: Context) -> Message:
        """Copies states between blocks and answers when it is done."""
        self._core.copies.check_room(time_remaining(context))
        return await self._core.answer(self._core.once(Kind.COPY_BLOCKS, request), "the call")

    async def ComputeCopySpecs(
        self, request: pb.ComputeCopySpecsRequest, _context: Context
    ) -> pb.ComputeCopySpecsResponse:
        """Computes where the states of accepted tokens begin."""
        core, layout = self._core, self._core.description.layout
        requests = max(0, len(request.row_offsets) - 1)
        core.convert.batch(requests, "row_offsets")
        limit = core.limits.max_copy_specs
        if max(requests * len(layout.tensors), len(request.block_ids)) > limit:
            raise BatchTooLargeError(
                f"{requests} requests of {len(layout.tensors)} tensors: more than {limit} entries",
                field="row_offsets",
                limit=limit,
            )
        offsets, num_elements = copy_specs(
            layout,
            np.fromiter(request.block_ids, np.int64, len(request.block_ids)),
            np.fromiter(request.row_offsets, np.int64, len(request.row_offsets)),
            core.convert.column(request.cur_block_idx, requests, "cur_block_idx"),
            core.convert.column(request.num_accepted_tokens, requests, "num_accepted_tokens"),
        )
        base_address = core.memory.base_address(self._rank_index(request.rank_index))
        columns = {2: offsets + base_address, 3: offsets, 4: num_elements}
        response = message_of_columns(
            pb.ComputeCopySpecsResponse, {field: column.ravel().astype(FIXED64) for field, column in columns.items()}
        )
        response.incarnation = core.incarnation
        response.tensor_count = len(layout.tensors)
        return response

    # Acts

    def _attempt(self, request: pb.AllocateBlocksRequest, context: Context) -> Reply:
        core = self._core
        reply = core.remembered(request)  # the same request may have been ahead in the line
        if reply is None:
            if _zeroes(request) or core.pool.sessions.get(request.session.session_id).tenant:
                core.copies.check_room(time_remaining(context))
            core.quotas.check_blocks(request.session.session_id, request.count)
            reply = core.ledger.perform(Kind.ALLOCATE_BLOCKS, request)
        return reply

    def _allocate(self, request: pb.AllocateBlocksRequest, _now_ns: int) -> tuple[Message, int]:
        core, work = self._core, 0
        session = core.convert.session(request.session)
        refs = core.pool.allocate(*session, request.count)
        zeroed = refs if _zeroes(request) else core.pool.foreign(session[0], refs)
        if len(zeroed):
            pin = core.pool.pin_write(*session, zeroed)
            work = core.works.begin(MemoryWork(session[0], pin, zeroed_blocks=zeroed.block_ids))
        return pb.AllocateBlocksResponse(incarnation=core.incarnation, blocks=refs_to_wire(refs)), work

    def _free(self, request: pb.FreeBlocksRequest, _now_ns: int) -> tuple[Message, int]:
        core = self._core
        core.pool.free(*core.convert.session(request.session), core.convert.refs(request.blocks, "blocks"))
        return pb.FreeBlocksResponse(incarnation=core.incarnation), 0

    def _retain(self, request: pb.RetainBlocksRequest, _now_ns: int) -> tuple[Message, int]:
        core = self._core
        core.pool.retain(*core.convert.session(request.session), core.convert.refs(request.blocks, "blocks"))
        return pb.RetainBlocksResponse(incarnation=core.incarnation), 0

    def _commit(self, request: pb.CommitBlocksRequest, _now_ns: int) -> tuple[Message, int]:
        core, checked = self._core, self._core.convert
        refs = checked.refs(request.blocks, "blocks")
        namespace, hashes = self._prefixes(request)
        boundary = checked.column(request.boundary_tokens, len(refs), "boundary_tokens")
        written = checked.column(request.written_through_tokens, len(refs), "written_through_tokens")
        session = checked.session(request.session)
        result = core.pool.commit(*session, refs, namespace, hashes, boundary, written)
        response = pb.CommitBlocksResponse(
            incarnation=core.incarnation,
            holders=refs_to_wire(result.holders),
            duplicate_rows=result.duplicate_rows.tolist(),
        )
        return response, 0

    def _lookup(self, request: pb.LookupPrefixRequest, _now_ns: int) -> tuple[Message, int]:
        core = self._core
        hit = core.pool.lookup(*core.convert.session(request.session), *self._prefixes(request))
        found = None if hit is None else pb.PrefixHit(hash_index=hit.hash_index, block=refs_to_wire(hit.block))
        return pb.LookupPrefixResponse(incarnation=core.incarnation, hit=found), 0

    def _evict(self, request: pb.EvictBlocksRequest, _now_ns: int) -> tuple[Message, int]:
        core = self._core
        session, refs = core.convert.session(request.session), core.convert.refs(request.blocks, "blocks")
        result = core.pool.evict(*session, refs, *self._prefixes(request))
        response = pb.EvictBlocksResponse(
            incarnation=core.incarnation, unlisted_blocks=result.unlisted, freed_blocks=result.freed
        )
        return response, 0

    def _copy(self, request: pb.CopyBlocksRequest, _now_ns: int) -> tuple[Message, int]:
        core, checked, layout = self._core, self._core.convert, self._core.description.layout.block
        session = checked.session(request.session)
        src, dst = checked.refs(request.src, "src"), checked.refs(request.dst, "dst")
        temporal_src = checked.refs(request.temporal_src, "temporal_src") if request.HasField("temporal_src") else src
        biases = checked.column(request.token_biases, len(dst), "token_biases", default=0)
        plan = CopyPlan(src.block_ids, dst.block_ids, biases, temporal_src.block_ids)
        check_plan(plan, layout)
        pin = core.pool.pin_copy(*session, src, dst, temporal_src)
        work = core.works.begin(MemoryWork(session[0], pin, pre_copies=plan))
        written = copied_bytes(plan, layout) * len(core.description.tp_ranks)
        return pb.CopyBlocksResponse(incarnation=core.incarnation, copied_bytes=written), work

    def _prefixes(
        self, request: pb.CommitBlocksRequest | pb.LookupPrefixRequest | pb.EvictBlocksRequest
    ) -> tuple[str, list[bytes]]:
        checked = self._core.convert
        namespace = checked.name(request.namespace, "namespace")
        checked.batch(len(request.prefix_hashes), "prefix_hashes")
        return namespace, checked.hashes(request.prefix_hashes, "prefix_hashes")

    def _counted(self, error: PoolExhaustedError, requested: int) -> PoolExhaustedError:
        """Adds the numbers to a refusal of the line, which knows none."""
        if error.metadata:
            return error
        usage = self._core.pool.usage()
        return PoolExhaustedError(
            error.message,
            field=error.field,
            retry_after=error.retry_after,
            free=usage.free,
            evictable=usage.evictable,
            requested=requested,
        )


def _zeroes(request: pb.AllocateBlocksRequest) -> bool:
    return request.zero if request.HasField("zero") else True


def _wait_seconds(max_wait: Duration, context: Context) -> float:
    wait_ns = min(convert.duration_ns(max_wait, "max_wait"), MAX_WAIT_NS)
    remaining = time_remaining(context)
    return wait_ns / 1e9 if remaining is None else min(wait_ns / 1e9, remaining)
