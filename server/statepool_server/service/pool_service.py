"""PoolService: what the pool is, and how large states are."""

import json
from collections.abc import Mapping
from dataclasses import asdict

from statepool.errors import BadFieldError
from statepool.layout import BlockLayout, ConvLayout
from statepool.models import ModelStates, model_layout, parse_model_config
from statepool.shapes import FAMILIES, calculate
from statepool.v1 import pool_pb2 as pb
from statepool.wire import (
    arena_layout_to_wire,
    block_layout_to_wire,
    conv_layout_from_wire,
    dtype_from_wire,
    refs_to_wire,
    state_from_wire,
)
from statepool_server.blocks import BlockState
from statepool_server.service.attach_processes import AttachedProcesses
from statepool_server.service.calls import Context
from statepool_server.service.core import Core
from statepool_server.service.watchers import Watchers

MAX_CONFIG_BYTES = 2**20
"""Longest config.json."""


class PoolService:
    """Handlers of ``statepool.v1.PoolService``."""

    def __init__(self, core: Core, processes: AttachedProcesses, watchers: Watchers) -> None:
        self._core = core
        self._processes = processes
        self._watchers = watchers
        self._layout = arena_layout_to_wire(core.description.layout)

    async def GetPool(self, _request: pb.GetPoolRequest, _context: Context) -> pb.GetPoolResponse:
        """Describes the pool."""
        core, known = self._core, self._core.description
        pool = pb.Pool(
            model_type=known.model_type,
            layout=self._layout,
            capacity=core.pool.capacity,
            block_tokens=known.block_tokens,
            tp_size=known.tp_size,
            tp_ranks=known.tp_ranks,
            num_spec=known.num_spec,
            devices=known.devices,
            usage=core.usage(),
            limits=pb.Limits(**asdict(core.limits)),
            features=known.features,
            family=known.family,
            family_parameters=known.family_parameters,
        )
        return pb.GetPoolResponse(incarnation=core.incarnation, pool=pool)

    async def CalculateStateShapes(
        self, request: pb.CalculateStateShapesRequest, _context: Context
    ) -> pb.CalculateStateShapesResponse:
        """Computes shapes of a model config, a family or custom states."""
        source = request.WhichOneof("source")
        if source is None:
            raise BadFieldError("source: nothing to calculate is given", field="source")
        conv_layout = conv_layout_from_wire(request.conv_layout, "conv_layout")
        conv_layout = conv_layout or self._core.description.layout.block.conv_layout
        try:
            response = _calculate(source, request, conv_layout)
        except ValueError as error:
            raise BadFieldError(f"{source}: {error}", field=source) from error
        response.incarnation = self._core.incarnation
        return response

    async def ListBlocks(self, request: pb.ListBlocksRequest, _context: Context) -> pb.ListBlocksResponse:
        """Lists a page of blocks."""
        core = self._core
        after, size = core.convert.page(request.page_size, request.page_token)
        rows = core.pool.list_blocks(after, size, _states(request), request.session_id)
        full = len(rows.refs) == size
        return pb.ListBlocksResponse(
            incarnation=core.incarnation,
            blocks=refs_to_wire(rows.refs),
            states=rows.states.tolist(),
            reference_counts=rows.reference_counts.tolist(),
            session_ids=rows.session_ids.tolist(),
            prefix_hashes=rows.prefix_hashes,
            next_page_token=core.convert.page_token(int(rows.refs.block_ids[-1])) if full else "",
        )

    async def WatchBlocks(self, request: pb.WatchBlocksRequest, context: Context) -> None:
        """Tells what can be found, and what changes."""
        await self._watchers.watch(request, context)

    async def AttachPool(self, request: pb.AttachPoolRequest, _context: Context) -> pb.AttachPoolResponse:
        """Gives out a token for the attach socket."""
        return self._processes.offer(request)

    async def DetachPool(self, request: pb.DetachPoolRequest, _context: Context) -> pb.DetachPoolResponse:
        """Ends an attachment on its process's word."""
        cleared = self._processes.detach(request.attachment_id, request.token)
        return pb.DetachPoolResponse(incarnation=self._core.incarnation, cleared_blocks=cleared)

    async def ListAttachments(
        self, _request: pb.ListAttachmentsRequest, _context: Context
    ) -> pb.ListAttachmentsResponse:
        """Lists attached processes."""
        return pb.ListAttachmentsResponse(incarnation=self._core.incarnation, attachments=self._processes.rows())


def _states(request: pb.ListBlocksRequest) -> list[BlockState]:
    for value in request.states:
        if value == pb.BLOCK_STATE_UNSPECIFIED or value not in pb.BlockState.values():
            raise BadFieldError(f"states: {value} is no block state", field="states")
    asked = [BlockState(value) for value in request.states]
    return asked or [state for state in BlockState if state is not BlockState.FREE]


def _calculate(
    source: str, request: pb.CalculateStateShapesRequest, conv_layout: ConvLayout
) -> pb.CalculateStateShapesResponse:
    if source == "model_config_json":
        return _of_model(request, conv_layout)
    if source == "custom":
        states = [state_from_wire(state, f"custom.states[{i}]") for i, state in enumerate(request.custom.states)]
        layout = BlockLayout.of(states, conv_layout)
        return pb.CalculateStateShapesResponse(family="custom", layout=block_layout_to_wire(layout))
    shapes = calculate(source, _parameters(source, request), conv_layout.value)
    return pb.CalculateStateShapesResponse(family=source, shapes=_shapes(shapes))


def _of_model(request: pb.CalculateStateShapesRequest, conv_layout: ConvLayout) -> pb.CalculateStateShapesResponse:
    if len(request.model_config_json) > MAX_CONFIG_BYTES:
        raise ValueError(f"longer than {MAX_CONFIG_BYTES} bytes")
    model = parse_model_config(_json_object(request.model_config_json))
    conv_dtype = dtype_from_wire(request.conv_dtype, "conv_dtype")
    temporal_dtype = dtype_from_wire(request.temporal_dtype, "temporal_dtype")
    tp_size = request.tp_size or 1
    layout = model_layout(
        model,
        tp_size=tp_size,
        num_spec=request.num_spec,
        conv_layout=conv_layout.value,
        conv_dtype=conv_dtype or "auto",
        temporal_dtype=temporal_dtype or "auto",
    )
    return pb.CalculateStateShapesResponse(
        family=model.family,
        shapes=_model_shapes(model, tp_size, request.num_spec, conv_layout),
        state_layers=model.state_layers,
        layout=block_layout_to_wire(layout),
    )


def _model_shapes(model: ModelStates, tp_size: int, num_spec: int, conv_layout: ConvLayout) -> list[pb.StateShape]:
    return [] if model.family == "custom" else _shapes(model.state_shapes(tp_size, num_spec, conv_layout.value))


def _json_object(text: str) -> Mapping[str, object]:
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def _parameters(source: str, request: pb.CalculateStateShapesRequest) -> dict[str, int]:
    """Reads the message of a family: its fields are named as the family's parameters, so no list is kept here."""
    message = getattr(request, source)
    known = FAMILIES[source].parameters
    return {
        field.name: getattr(message, field.name)
        for field in message.DESCRIPTOR.fields
        if field.name in known and (not field.has_presence or message.HasField(field.name))
    }


def _shapes(shapes: tuple[tuple[int, ...], ...]) -> list[pb.StateShape]:
    return [pb.StateShape(dims=shape) for shape in shapes]
