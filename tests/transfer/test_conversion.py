"""Guarantee: a server receives states of another layout as its own pool would hold them, or not at all."""

import json
from pathlib import Path

import numpy as np
import pytest

from service.servers import Server, Servers
from statepool import Client, LayoutMismatchError, Session
from statepool.convert import PoolStates, plan_conversion

MODEL = {
    "model_type": "mamba2",
    "hidden_size": 32,
    "expand": 2,
    "num_heads": 16,
    "head_dim": 4,
    "n_groups": 4,
    "state_size": 8,
    "conv_kernel": 4,
    "num_hidden_layers": 2,
    "torch_dtype": "bfloat16",
}
"""A small model whose conv states are made of x, B and C."""


@pytest.fixture
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes its config.json."""
    path = tmp_path_factory.getbasetemp() / "mamba2.json"
    path.write_text(json.dumps(MODEL), encoding="utf-8")
    return path


def _server(servers: Servers, model: Path, flags: dict[str, str]) -> Server:
    settings = {"--model-config": str(model), "--tp-size": "2"} | flags
    return servers.shared(*(word for setting in settings.items() for word in setting))


def _fill(session: Session, client: Client) -> tuple[np.ndarray, object]:
    pool = client.get_pool()
    blocks = session.allocate_blocks(2)
    random = np.random.default_rng(3)
    for rank in range(len(pool.tp_ranks)):
        session.write_blocks(blocks, random.integers(0, 256, (2, pool.block_bytes), np.uint8), rank_index=rank)
    return np.stack([session.read_images(blocks, rank_index=rank) for rank in range(len(pool.tp_ranks))]), blocks


@pytest.mark.parametrize(
    ("have", "want"),
    [
        ({}, {"--num-spec": "2"}),
        ({"--num-spec": "2", "--conv-layout": "DS"}, {"--arrangement": "layer_major"}),
        ({}, {"--tp-size": "4"}),
        ({"--tp-size": "4"}, {"--num-spec": "1", "--conv-layout": "DS"}),
        ({"--tp-size": "4"}, {"--tp-ranks": "1"}),
    ],
)
def test_received_states(servers: Servers, model: Path, have: dict[str, str], want: dict[str, str]) -> None:
    """Every local rank gets what the conversion, itself tested against the whole model, makes of the images."""
    source, destination = _server(servers, model, have), _server(servers, model, want)
    with source.client() as here, destination.client() as there:
        with here.create_session(60.0) as lender, there.create_session(60.0) as taker:
            lent, blocks = _fill(lender, here)
            transfer = lender.create_transfer(blocks)  # type: ignore[arg-type]

            received = taker.receive_transfer(transfer, source=source.target)

            conversion, pool = (
                plan_conversion(*(PoolStates.of(client.get_pool()) for client in (here, there))),
                there.get_pool(),
            )
            for rank_index, rank in enumerate(pool.tp_ranks):
                expected = np.zeros((2, pool.block_bytes), np.uint8)
                for needed in conversion.source_ranks(rank):
                    for image, into in zip(lent[needed], expected, strict=True):
                        conversion.place(needed, image, rank, into)
                assert np.array_equal(taker.read_images(received.blocks, rank_index=rank_index), expected)
                assert expected.any(axis=1).all()
        assert not list(here.list_transfers())


def test_ranks_that_are_elsewhere(servers: Servers, model: Path) -> None:
    """A source that holds only some of the ranks that are needed is refused, and nothing is allocated."""
    source, destination = _server(servers, model, {"--tp-ranks": "1"}), _server(servers, model, {})
    with (
        source.client() as here,
        destination.client() as there,
        here.create_session(60.0) as lender,
        there.create_session(60.0) as taker,
    ):
        transfer = lender.create_transfer(lender.allocate_blocks(1))
        with pytest.raises(LayoutMismatchError, match="ranks"):
            taker.receive_transfer(transfer, source=source.target)
        assert there.get_pool().usage.held_blocks == 0
        here.cancel_transfer(transfer)
