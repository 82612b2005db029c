"""Guarantee: what the server tells about its pool and about shapes is what any process computes for itself."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from service.raw import Stubs, refusal_of
from service.servers import BLOCK_TOKENS, CAPACITY, CHUNK_BYTES, IMAGE_BYTES, Server, custom_model
from statepool import BadFieldError, BlockState, Client, Session, SessionNotFoundError
from statepool.layout import ArenaLayout, Arrangement, BlockLayout, ConvLayout, Dtype, StateKind, StateSpec
from statepool.models import bundled_models, model_layout, parse_model_config
from statepool.rpc import RPCS
from statepool.v1 import admin_pb2, block_pb2, pool_pb2, session_pb2

VECTORS = Path(__file__).parents[1] / "data" / "vectors"
SHAPE_VECTORS: list[dict[str, Any]] = json.loads((VECTORS / "state_shapes.json").read_text(encoding="utf-8"))
SERVICES = sorted({rpc.service for rpc in RPCS})


def _custom_block() -> BlockLayout:
    return model_layout(parse_model_config(custom_model()), tp_size=2, conv_layout="SD")


def test_layout_is_the_one_computed_locally(client: Client) -> None:
    """The pool's layout, fingerprint included, follows from the model config and the block count alone."""
    expected = ArenaLayout(_custom_block(), CAPACITY + 1, Arrangement.BLOCK_MAJOR)

    pool = client.get_pool()

    assert pool.layout == expected
    assert pool.layout.block.fingerprint == expected.block.fingerprint
    assert pool.block_bytes == IMAGE_BYTES


def test_pool_tells_its_settings_and_limits(client: Client) -> None:
    """Everything that was set on the command line can be asked for."""
    pool = client.get_pool()

    assert (pool.model_type, pool.capacity, pool.block_tokens) == ("custom", CAPACITY, BLOCK_TOKENS)
    assert (pool.tp_size, pool.tp_ranks, pool.devices, pool.num_spec) == (2, (0, 1), ("cpu", "cpu"), 0)
    assert (pool.limits.min_ttl_ms, pool.limits.max_chunk_bytes) == (50, CHUNK_BYTES)
    assert pool.features == ("checksums:off", "copy_engine:host")


def test_usage_follows_the_blocks(client: Client, session: Session) -> None:
    """Held, free, committed and evictable blocks and sessions are counted, and add up to the capacity."""
    blocks = session.allocate_blocks(3)
    session.commit_blocks(blocks[:2], prefix_hashes=[b"u1", b"u2"], boundary_tokens=16, written_through_tokens=16)
    session.free_blocks(blocks[:1])

    usage = client.get_pool().usage

    assert (usage.held_blocks, usage.evictable_blocks, usage.committed_blocks) == (2, 1, 2)
    assert (usage.free_blocks, usage.releasing_blocks) == (CAPACITY - 3, 0)
    assert (usage.sessions, usage.busy_blocks, usage.waiting_allocations) == (1, 0, 0)


@pytest.mark.parametrize("vector", SHAPE_VECTORS, ids=lambda vector: f"{vector['family']}-{vector['conv_layout']}")
def test_family_shapes_are_those_of_the_reference(client: Client, vector: dict[str, Any]) -> None:
    """The RPC gives the reference's shapes of a family, or refuses with the reference's error."""
    ask = {"family": vector["family"], "parameters": vector["params"], "conv_layout": vector["conv_layout"]}

    if vector["error"] is None:
        answer = client.calculate_state_shapes(**ask)
        assert [list(shape) for shape in answer.shapes] == vector["shapes"]
        assert (answer.family, answer.layout, answer.state_layers) == (vector["family"], None, ())
    else:
        with pytest.raises(BadFieldError) as caught:
            client.calculate_state_shapes(**ask)
        assert vector["error"] in caught.value.message
        assert caught.value.field == vector["family"]


@pytest.mark.parametrize("name", sorted(bundled_models()))
def test_model_config_gives_the_layout_computed_locally(client: Client, name: str) -> None:
    """For a config.json the RPC gives the layers, shapes and layout that this process computes."""
    config = json.loads(Path(bundled_models()[name]).read_text(encoding="utf-8"))
    model = parse_model_config(config)

    answer = client.calculate_state_shapes(config, conv_layout="DS")

    assert answer.state_layers == tuple(model.state_layers)
    assert answer.layout == model_layout(model, tp_size=1, conv_layout="DS")
    assert answer.shapes == model.state_shapes(1, 0, "DS")


def test_model_config_takes_dtypes_and_sizes(client: Client) -> None:
    """Tensor parallelism, speculation and both dtypes reach the calculation."""
    config = json.loads(Path(bundled_models()["falcon_h1"]).read_text(encoding="utf-8"))
    settings: dict[str, Any] = {"tp_size": 4, "num_spec": 2, "conv_dtype": "float16", "temporal_dtype": "float32"}

    answer = client.calculate_state_shapes(config, conv_layout="SD", **settings)

    assert answer.layout == model_layout(parse_model_config(config), conv_layout="SD", **settings)


def test_custom_states_give_the_layout_computed_locally(client: Client) -> None:
    """States that the caller lists are laid out as this process lays them out, in the server's conv layout."""
    states = [
        StateSpec("a", 0, StateKind.CONV, Dtype.INT8, (3, 5)),
        StateSpec("b", 7, StateKind.OPAQUE, Dtype.FLOAT8_E5M2, (1000,)),
    ]

    answer = client.calculate_state_shapes(states=states)

    assert answer.layout == BlockLayout.of(states, ConvLayout.SD)
    assert (answer.family, answer.shapes) == ("custom", ())


@pytest.mark.parametrize(
    ("request_", "field", "words"),
    [
        ({}, "source", "nothing"),
        ({"model_config_json": "{"}, "model_config_json", ""),
        ({"model_config_json": "[" * 100_000}, "model_config_json", ""),
        ({"model_config_json": "[]"}, "model_config_json", "not a JSON object"),
        ({"model_config_json": " " * (2**20 + 1)}, "model_config_json", "longer than 1048576"),
        ({"model_config_json": '{"model_type": "gpt2"}'}, "model_config_json", "mamba2"),
        ({"model_config_json": '{"model_type": "mamba"}'}, "model_config_json", ""),
        ({"custom": {}}, "custom", "at least one state"),
        ({"custom": {"states": [{"name": "a", "kind": 1, "dtype": 1, "shape": [2, -1]}]}}, "custom", ""),
        ({"custom": {"states": [{"name": "a", "kind": 9, "dtype": 1}]}}, "custom.states[0].kind", "9"),
        ({"custom": {"states": [{"name": "a", "kind": 1}]}}, "custom.states[0].dtype", "0"),
        ({"short_conv": {"tp_world_size": 1}, "conv_layout": 7}, "conv_layout", "7"),
    ],
)
def test_bad_shape_request_is_refused_by_field(stubs: Stubs, request_: dict[str, Any], field: str, words: str) -> None:
    """A request that means nothing is refused with the field at fault."""
    request = pool_pb2.CalculateStateShapesRequest(**request_)

    error = refusal_of(lambda: stubs.pool.CalculateStateShapes(request))

    assert isinstance(error, BadFieldError)
    assert error.field == field
    assert words in error.message


def test_list_blocks_pages_and_filters(client: Client, session: Session, other: Session) -> None:
    """Pages of any size give the same rows, and states and sessions select among them."""
    mine, theirs = session.allocate_blocks(5), other.allocate_blocks(2)
    session.commit_blocks(mine[:2], prefix_hashes=[b"x", b"y"], boundary_tokens=16, written_through_tokens=16)
    session.free_blocks(mine[:1])

    whole = list(client.list_blocks())
    small = list(client.list_blocks(page_size=2))
    owned = list(client.list_blocks(states=[BlockState.OWNED], session_id=session.session_id))
    free = list(client.list_blocks(states=[BlockState.FREE]))

    assert [len(page) for page in whole] == [7]
    assert [len(page) for page in small] == [2, 2, 2, 1]
    assert [id_ for page in small for id_ in page.blocks.block_ids] == whole[0].blocks.block_ids.tolist()
    assert owned[0].blocks.block_ids.tolist() == sorted(mine.block_ids[2:].tolist())
    assert len(free[0]) == CAPACITY - 7
    rows = dict(zip(whole[0].blocks.block_ids.tolist(), range(7), strict=True))
    evictable, shared, stranger = (rows[int(id_)] for id_ in (*mine.block_ids[:2], theirs.block_ids[0]))
    assert whole[0].states[[evictable, shared, stranger]].tolist() == [4, 3, 2]
    assert whole[0].reference_counts[[evictable, shared, stranger]].tolist() == [0, 1, 1]
    assert whole[0].session_ids[[evictable, shared, stranger]].tolist() == [0, session.session_id, other.session_id]
    assert [whole[0].prefix_hashes[row] for row in (evictable, shared, stranger)] == [b"x", b"y", b""]


def test_list_blocks_refuses_what_it_did_not_make(client: Client, stubs: Stubs) -> None:
    """A page token of another server, an unknown state and an unknown session are refused."""
    incarnation = client.get_pool().incarnation
    for token in ("nonsense", "1.5", f"{incarnation:x}.", f"{incarnation:x}.-1", f"{incarnation:x}.{'9' * 30}"):
        request = pool_pb2.ListBlocksRequest(page_token=token)
        error = refusal_of(partial(stubs.pool.ListBlocks, request))
        assert isinstance(error, BadFieldError), token
        assert error.field == "page_token"

    error = refusal_of(
        lambda: stubs.pool.ListBlocks(pool_pb2.ListBlocksRequest(states=[pool_pb2.BLOCK_STATE_UNSPECIFIED]))
    )
    assert isinstance(error, BadFieldError)
    assert error.field == "states"
    with pytest.raises(SessionNotFoundError):
        list(client.list_blocks(session_id=2**63))


def test_server_info_tells_process_and_calls(server: Server, client: Client) -> None:
    """The server names its own process and versions and counts calls by status."""
    client.get_pool()

    info = client.get_server_info()

    assert info.pid == server.process.pid
    assert info.incarnation == client.get_pool().incarnation != 0
    assert info.calls["statepool.v1.PoolService/GetPool:OK"] >= 1
    assert info.uptime > 0
    assert set(info.runtime_versions) == {"python", "grpcio", "protobuf", "torch"}


@pytest.mark.parametrize("service", ["", *SERVICES])
def test_health_is_told_per_service(server: Server, service: str) -> None:
    """The standard health service answers for the whole server and for each service."""
    with grpc.insecure_channel(server.target) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))

    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_lists_every_service(server: Server) -> None:
    """A client without the protos can find every service."""
    request = reflection_pb2.ServerReflectionRequest(list_services="")

    with grpc.insecure_channel(server.target) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        answer = next(iter(stub.ServerReflectionInfo(iter([request]))))

    listed = {service.name for service in answer.list_services_response.service}
    assert listed >= {*SERVICES, "grpc.health.v1.Health", "grpc.channelz.v1.Channelz"}


def test_every_rpc_has_a_client_call() -> None:
    """The client library knows every RPC of the protos."""
    modules = (admin_pb2, block_pb2, pool_pb2, session_pb2)

    defined = {
        f"/{service.full_name}/{method.name}"
        for module in modules
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }

    assert defined <= {rpc.path for rpc in RPCS}
