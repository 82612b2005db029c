"""Calls of PoolService and AdminService."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import UTC
from typing import Any

import numpy as np

from statepool import rpc
from statepool.descriptions import CalculatedShapes, DrainProgress, Limits, Pool, ServerInfo
from statepool.layout import ConvLayout, Dtype, StateSpec
from statepool.metrics import Metrics, MetricSample
from statepool.results import BlockPage, BlockState, IntegrityReport
from statepool.rpc import Call
from statepool.v1 import admin_pb2, pool_pb2
from statepool.wire import (
    arena_layout_from_wire,
    block_layout_from_wire,
    conv_layout_to_wire,
    dtype_to_wire,
    refs_from_wire,
    state_to_wire,
    usage_from_wire,
)


def get_pool() -> Call[Pool]:
    """Builds GetPool."""
    return rpc.GET_POOL.call(pool_pb2.GetPoolRequest(), _pool)


def get_server_info() -> Call[ServerInfo]:
    """Builds GetServerInfo."""
    return rpc.GET_SERVER_INFO.call(admin_pb2.GetServerInfoRequest(), _server_info)


def get_metrics() -> Call[Metrics]:
    """Builds GetMetrics."""
    return rpc.GET_METRICS.call(admin_pb2.GetMetricsRequest(), _metrics)


def verify_integrity() -> Call[IntegrityReport]:
    """Builds VerifyIntegrity."""
    return rpc.VERIFY_INTEGRITY.call(admin_pb2.VerifyIntegrityRequest(), _integrity_report)


def drain(grace: float, stop: bool) -> Call[DrainProgress]:
    """Builds Drain.

    Raises:
        ValueError: A grace time that is negative or too long for the wire.
    """
    request = admin_pb2.DrainRequest(stop=stop)
    request.grace.FromNanoseconds(round(grace * 1e9))
    return rpc.DRAIN.call(request, _drain_progress, extra_seconds=grace)


def list_blocks(
    states: Sequence[BlockState] | None, session_id: int, page_size: int, page_token: str
) -> Call[tuple[BlockPage, str]]:
    """Builds ListBlocks for one page; the result carries the next page's token, empty after the last."""
    request = pool_pb2.ListBlocksRequest(
        page_size=page_size,
        page_token=page_token,
        states=[pool_pb2.BlockState.Value(f"BLOCK_STATE_{BlockState(state).name}") for state in states or ()],
        session_id=session_id,
    )
    return rpc.LIST_BLOCKS.call(request, _block_page)


def calculate_state_shapes(
    model_config: str | Mapping[str, Any] | None,
    family: str | None,
    parameters: Mapping[str, int] | None,
    states: Sequence[StateSpec] | None,
    *,
    conv_layout: ConvLayout | str | None,
    tp_size: int,
    num_spec: int,
    conv_dtype: Dtype | str | None,
    temporal_dtype: Dtype | str | None,
) -> Call[CalculatedShapes]:
    """Builds CalculateStateShapes.

    Raises:
        ValueError: Not exactly one of model_config, family and states is given, or a family, parameter, layout or dtype
            is unknown.
    """
    request = pool_pb2.CalculateStateShapesRequest(
        **_source(model_config, family, parameters, states),
        conv_layout=conv_layout_to_wire(None if conv_layout is None else ConvLayout(conv_layout)),
        tp_size=tp_size,
        num_spec=num_spec,
        conv_dtype=dtype_to_wire(None if conv_dtype is None else Dtype(conv_dtype)),
        temporal_dtype=dtype_to_wire(None if temporal_dtype is None else Dtype(temporal_dtype)),
    )
    return rpc.CALCULATE_STATE_SHAPES.call(request, _calculated_shapes)


def _source(
    model_config: str | Mapping[str, Any] | None,
    family: str | None,
    parameters: Mapping[str, int] | None,
    states: Sequence[StateSpec] | None,
) -> dict[str, Any]:
    if sum(source is not None for source in (model_config, family, states)) != 1:
        raise ValueError("exactly one of model_config, family and states must be given")
    if model_config is not None:
        return {"model_config_json": model_config if isinstance(model_config, str) else json.dumps(model_config)}
    if states is not None:
        return {"custom": pool_pb2.CustomStates(states=[state_to_wire(state) for state in states])}
    return {_known_family(str(family)): dict(parameters or {})}


def _known_family(family: str) -> str:
    sources = pool_pb2.CalculateStateShapesRequest.DESCRIPTOR.oneofs_by_name["source"].fields
    known = [field.name for field in sources if field.name not in ("model_config_json", "custom")]
    if family not in known:
        raise ValueError(f"family: {family!r} is unknown; known are {', '.join(known)}")
    return family


def _pool(response: pool_pb2.GetPoolResponse) -> Pool:
    pool = response.pool
    return Pool(
        incarnation=response.incarnation,
        model_type=pool.model_type,
        layout=arena_layout_from_wire(pool.layout),
        capacity=pool.capacity,
        block_tokens=pool.block_tokens,
        tp_size=pool.tp_size,
        tp_ranks=tuple(pool.tp_ranks),
        num_spec=pool.num_spec,
        devices=tuple(pool.devices),
        usage=usage_from_wire(pool.usage),
        limits=Limits(**{field.name: getattr(pool.limits, field.name) for field in fields(Limits)}),
        features=tuple(pool.features),
        family=pool.family,
        family_parameters=dict(pool.family_parameters),
    )


def _server_info(response: admin_pb2.GetServerInfoResponse) -> ServerInfo:
    return ServerInfo(
        incarnation=response.incarnation,
        version=response.version,
        pid=response.pid,
        start_time=response.start_time.ToDatetime(UTC),
        uptime=response.uptime.ToNanoseconds() / 1e9,
        runtime_versions=dict(response.runtime_versions),
        calls=dict(response.calls),
        background={part.name: part.failure for part in response.background},
        loop_lag=response.loop_lag.ToNanoseconds() / 1e9,
        is_draining=response.is_draining,
        continued_incarnations=tuple(response.continued_incarnations),
    )


def _metrics(response: admin_pb2.GetMetricsResponse) -> Metrics:
    samples = (MetricSample(sample.name, dict(sample.labels), sample.value) for sample in response.samples)
    return Metrics(response.incarnation, tuple(samples))


def _integrity_report(response: admin_pb2.VerifyIntegrityResponse) -> IntegrityReport:
    return IntegrityReport(
        verified_blocks=response.verified_blocks,
        unverified_blocks=response.unverified_blocks,
        condemned=refs_from_wire(response.condemned),
        condemned_blocks=response.condemned_blocks,
    )


def _drain_progress(response: admin_pb2.DrainResponse) -> DrainProgress:
    return DrainProgress(sequences=response.sequences, sessions=response.sessions)


def _block_page(response: pool_pb2.ListBlocksResponse) -> tuple[BlockPage, str]:
    page = BlockPage(
        blocks=refs_from_wire(response.blocks),
        states=np.array(response.states, np.int64),
        reference_counts=np.array(response.reference_counts, np.int64),
        session_ids=np.array(response.session_ids, np.uint64),
        prefix_hashes=tuple(response.prefix_hashes),
    )
    return page, response.next_page_token


def _calculated_shapes(response: pool_pb2.CalculateStateShapesResponse) -> CalculatedShapes:
    return CalculatedShapes(
        family=response.family,
        shapes=tuple(tuple(shape.dims) for shape in response.shapes),
        state_layers=tuple(response.state_layers),
        layout=block_layout_from_wire(response.layout) if response.HasField("layout") else None,
    )
