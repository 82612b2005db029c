"""Guarantee: what the state shape calculator reads from a configuration is what the model made from it keeps."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from realmodel.models import MODELS, VOCAB_SIZE, build_model, state_layers
from statepool.layout import ConvLayout
from statepool.models import model_layout, read_model_config

NAMES = sorted(MODELS)
TOKENS = torch.randint(VOCAB_SIZE, (30,), generator=torch.Generator().manual_seed(3)).tolist()


@pytest.mark.parametrize("name", NAMES)
def test_shapes(name: str) -> None:
    """Every state of the library's own cache has its shape in the layout, and the layout has no other state."""
    model = build_model(name)
    cache = model.blank_cache()

    shapes = {state.name: state.shape for state in model.layout(conv_layout=ConvLayout.DS).states}

    kept: dict[str, tuple[int, ...]] = {}
    for index, layer in state_layers(cache).items():
        _, dim, kernel = layer.conv_states[0].shape
        kept[f"layers.{index}.conv.0"] = (dim, kernel - 1)
        if layer.recurrent_states[0] is not None:
            _, heads, first, second = layer.recurrent_states[0].shape
            turned = name == "qwen3_next"
            kept[f"layers.{index}.temporal"] = (heads, second, first) if turned else (heads, first, second)
    assert shapes == kept


@pytest.mark.parametrize("name", NAMES)
def test_configuration_file(name: str, tmp_path: Path) -> None:
    """The library's config.json gives the layout that the configuration in memory gives."""
    model = build_model(name)
    model.network.config.save_pretrained(tmp_path)

    layout = model_layout(read_model_config(tmp_path), conv_layout=ConvLayout.SD)

    assert layout.fingerprint == model.layout().fingerprint


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_the_model(name: str) -> None:
    """Token by token from zero states, the logits are those of one forward pass without any cache, up to rounding."""
    model = build_model(name)
    whole = model.network(input_ids=torch.tensor([TOKENS]), use_cache=False).logits[0]

    steps = model.logits(TOKENS)

    assert_close(steps, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_same_weights_everywhere(name: str) -> None:
    """A model made anew has the same weights, whatever was drawn before."""
    model = build_model(name)
    torch.rand(7)

    again = build_model.__wrapped__(name)

    for one, other in zip(model.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(one, other)
