"""BlockService: allocate, share, commit, find and copy blocks."""

import asyncio

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
from statepool_server.service.replays import Replays, Reply, Ticket
from statepool_server.service.stalls import Stalls
from statepool_server.service.streams import BlockStreams

MAX_WAIT_NS = 3600 * 10**9
"""Longest wait for blocks, in nanoseconds; the caller's deadline is usually much shorter."""


class BlockService(BlockStreams):
    """Handlers of ``statepool.v1.BlockService``; those of byte streams are inherited."""

    def __init__(self, core: Core, stalls: Stalls) -> None:
        super().__init__(core, stalls)
        self._core = core

    async def AllocateBlocks(self, request: pb.AllocateBlocksRequest, context: Context) -> Message:
        """Hands out blocks, zeroed, now or within max_wait."""
        core = self._core
        session = core.convert.session(request.session)
        core.convert.batch(request.count, "count")
        if request.count == 0:
            raise BadFieldError("count must be at least 1", field="count")
        ticket = Replays.ticket(session[0], request.request_id, request)
        max_wait = _wait_seconds(request.max_wait, context)
        core.pool.check_session(*session)
        reply = core.replays.find(ticket)
        if reply is None:
            if request.count > core.pool.capacity:
                max_wait = 0.0  # no wait can help
            try:
                reply = await core.waiting.run(
                    lambda: self._allocate(ticket, session, request, context),
                    lambda: core.pool.check_session(*session),
                    max_wait,
                )
            except PoolExhaustedError as error:
                raise self._counted(error, request.count) from error
        return await _settled(reply)

    def _allocate(
        self, ticket: Ticket, session: tuple[int, int], request: pb.AllocateBlocksRequest, context: Context
    ) -> Reply:
        core = self._core
        repeated = core.replays.find(ticket)  # the same request may have been ahead in the line
        if repeated is not None:
            return repeated
        zero = request.zero if request.HasField("zero") else True
        if zero:
            core.copies.check_room(time_remaining(context))
        refs = core.pool.allocate(*session, request.count)
        response = pb.AllocateBlocksResponse(incarnation=core.incarnation, blocks=refs_to_wire(refs))
        core.blocks_taken()
        if not zero:
            return core.replays.keep(ticket, response)
        pin = core.pool.pin_write(*session, refs)
        done = core.copies.submit(lambda: core.memory.zero(refs.block_ids), lambda: core.unpin(pin))
        return core.replays.keep(ticket, response, done)

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

    async def FreeBlocks(self, request: pb.FreeBlocksRequest, _context: Context) -> Message:
        """Drops references."""
        core = self._core
        session = core.convert.session(request.session)
        refs = core.convert.refs(request.blocks, "blocks")

        def act() -> pb.FreeBlocksResponse:
            core.pool.free(*session, refs)
            core.blocks_changed()
            return pb.FreeBlocksResponse(incarnation=core.incarnation)

        return core.once(session, request.request_id, request, act)

    async def RetainBlocks(self, request: pb.RetainBlocksRequest, _context: Context) -> Message:
        """Takes references."""
        core = self._core
        session = core.convert.session(request.session)
        refs = core.convert.refs(request.blocks, "blocks")

        def act() -> pb.RetainBlocksResponse:
            core.pool.retain(*session, refs)
            return pb.RetainBlocksResponse(incarnation=core.incarnation)

        return core.once(session, request.request_id, request, act)

    async def CommitBlocks(self, request: pb.CommitBlocksRequest, _context: Context) -> Message:
        """Makes blocks immutable and findable."""
        core, checked = self._core, self._core.convert
        session = checked.session(request.session)
        refs = checked.refs(request.blocks, "blocks")
        namespace = checked.name(request.namespace, "namespace")
        checked.batch(len(request.prefix_hashes), "prefix_hashes")
        hashes = checked.hashes(request.prefix_hashes, "prefix_hashes")
        boundary = checked.column(request.boundary_tokens, len(refs), "boundary_tokens")
        written = checked.column(request.written_through_tokens, len(refs), "written_through_tokens")

        def act() -> pb.CommitBlocksResponse:
            result = core.pool.commit(*session, refs, namespace, hashes, boundary, written)
            return pb.CommitBlocksResponse(
                incarnation=core.incarnation,
                holders=refs_to_wire(result.holders),
                duplicate_rows=result.duplicate_rows.tolist(),
            )

        return core.once(session, request.request_id, request, act)

    async def LookupPrefix(self, request: pb.LookupPrefixRequest, _context: Context) -> Message:
        """Finds and references the deepest prefix."""
        core = self._core
        session = core.convert.session(request.session)
        namespace = core.convert.name(request.namespace, "namespace")
        core.convert.batch(len(request.prefix_hashes), "prefix_hashes")
        hashes = core.convert.hashes(request.prefix_hashes, "prefix_hashes")

        def act() -> pb.LookupPrefixResponse:
            hit = core.pool.lookup(*session, namespace, hashes)
            found = None if hit is None else pb.PrefixHit(hash_index=hit.hash_index, block=refs_to_wire(hit.block))
            return pb.LookupPrefixResponse(incarnation=core.incarnation, hit=found)

        return core.once(session, request.request_id, request, act)

    async def EvictBlocks(self, request: pb.EvictBlocksRequest, _context: Context) -> Message:
        """Takes blocks out of the prefix index."""
        core = self._core
        session = core.convert.session(request.session)
        refs = core.convert.refs(request.blocks, "blocks")
        namespace = core.convert.name(request.namespace, "namespace")
        core.convert.batch(len(request.prefix_hashes), "prefix_hashes")
        hashes = core.convert.hashes(request.prefix_hashes, "prefix_hashes")

        def act() -> pb.EvictBlocksResponse:
            result = core.pool.evict(*session, refs, namespace, hashes)
            core.blocks_changed()
            return pb.EvictBlocksResponse(
                incarnation=core.incarnation, unlisted_blocks=result.unlisted, freed_blocks=result.freed
            )

        return core.once(session, request.request_id, request, act)

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

    async def CopyBlocks(self, request: pb.CopyBlocksRequest, context: Context) -> Message:
        """Copies states between blocks and answers when it is done."""
        core, checked = self._core, self._core.convert
        session = checked.session(request.session)
        src, dst = checked.refs(request.src, "src"), checked.refs(request.dst, "dst")
        temporal_src = checked.refs(request.temporal_src, "temporal_src") if request.HasField("temporal_src") else src
        biases = checked.column(request.token_biases, len(dst), "token_biases", default=0)
        ticket = Replays.ticket(session[0], request.request_id, request)
        core.pool.check_session(*session)
        reply = core.replays.find(ticket)
        if reply is None:
            core.copies.check_room(time_remaining(context))
            plan = CopyPlan(src.block_ids, dst.block_ids, biases, temporal_src.block_ids)
            check_plan(plan, core.description.layout.block)
            pin = core.pool.pin_copy(*session, src, dst, temporal_src)
            done = core.copies.submit(lambda: core.memory.copy(plan), lambda: core.unpin(pin))
            written = copied_bytes(plan, core.description.layout.block) * len(core.description.tp_ranks)
            response = pb.CopyBlocksResponse(incarnation=core.incarnation, copied_bytes=written)
            reply = core.replays.keep(ticket, response, done)
        return await _settled(reply)


async def _settled(reply: Reply) -> Message:
    if reply.done is not None:
        await asyncio.shield(reply.done)
    return reply.response


def _wait_seconds(max_wait: Duration, context: Context) -> float:
    wait_ns = min(convert.duration_ns(max_wait, "max_wait"), MAX_WAIT_NS)
    remaining = time_remaining(context)
    return wait_ns / 1e9 if remaining is None else min(wait_ns / 1e9, remaining)
