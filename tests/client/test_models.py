"""Guarantee: a model's config.json gives exactly the states that the model keeps, or an error that names the key."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statepool.layout import BlockLayout, ConvLayout, Dtype, StateKind
from statepool.models import (
    MODEL_TYPES,
    bundled_models,
    custom_layout,
    find_model_config,
    model_layout,
    parse_model_config,
    read_model_config,
)

VECTORS = Path(__file__).parent.parent / "data" / "vectors" / "model_shapes.json"


class Case(TypedDict):
    """One expected result of the reference implementation."""

    model: str
    tp_size: int
    conv_layout: ConvLayout
    num_spec: int
    family: str
    state_layers: int
    shapes: list[list[int]] | None
    error: str | None


CASES: list[Case] = json.loads(VECTORS.read_text())
GOOD = [case for case in CASES if case["error"] is None]
BAD = [case for case in CASES if case["error"] is not None]


def _name(case: Case) -> str:
    return f"{case['model']}-tp{case['tp_size']}"


def _config(name: str, **changes: object) -> dict[str, Any]:
    """A bundled configuration with keys changed; None removes one."""
    config = json.loads(bundled_models()[name].read_text()) | changes
    return {key: value for key, value in config.items() if value is not None}


def _dtypes(layout: BlockLayout) -> dict[StateKind, Dtype]:
    return {state.kind: state.dtype for state in layout.states}


@pytest.mark.parametrize("case", GOOD, ids=_name)
def test_states_equal_the_reference(case: Case) -> None:
    """Every good vector: family, number of state layers, and shapes."""
    model = read_model_config(bundled_models()[case["model"]])

    shapes = model.state_shapes(case["tp_size"], case["num_spec"], case["conv_layout"])

    assert (model.family, len(model.state_layers)) == (case["family"], case["state_layers"])
    assert shapes == tuple(tuple(shape) for shape in case["shapes"] or [])


@pytest.mark.parametrize("case", GOOD, ids=_name)
def test_layouts_hold_the_reference_states(case: Case) -> None:
    """Every good vector: the block has these shapes once per state layer, under the agreed names."""
    model = read_model_config(bundled_models()[case["model"]])

    layout = model_layout(model, tp_size=case["tp_size"], num_spec=case["num_spec"], conv_layout=case["conv_layout"])

    by_name = {state.name: state for state in layout.states}
    shapes = [tuple(shape) for shape in case["shapes"] or []]
    for layer in model.state_layers:
        convs = [name for name in by_name if name.startswith(f"layers.{layer}.conv.")]
        names = [*sorted(convs), *({f"layers.{layer}.temporal"} & set(by_name))]
        assert [by_name.pop(name).shape for name in names] == shapes
    assert not by_name


@pytest.mark.parametrize("case", BAD, ids=_name)
def test_errors_equal_the_reference(case: Case) -> None:
    """Every bad vector: its message, which a layout puts a head count's name before."""
    model = read_model_config(bundled_models()[case["model"]])

    with pytest.raises(ValueError, match="is not divisible by") as calculated:
        model.state_shapes(case["tp_size"], case["num_spec"], case["conv_layout"])
    with pytest.raises(ValueError, match=r"^num_k_heads: ") as laid_out:
        model_layout(model, tp_size=case["tp_size"])

    assert str(calculated.value) == case["error"]
    assert str(laid_out.value).endswith(f": {case['error']}")


@pytest.mark.parametrize(
    ("name", "changes", "layers"),
    [
        ("jamba", {"num_hidden_layers": 8, "attn_layer_period": 4, "attn_layer_offset": 1}, [0, 2, 3, 4, 6, 7]),
        ("jamba", {"num_hidden_layers": 2, "layers_block_type": ["attention", "mamba"]}, [1]),
        ("bamba", {"num_hidden_layers": 4, "attn_layer_indices": [0, 3]}, [1, 2]),
        ("bamba", {"num_hidden_layers": 3, "attn_layer_indices": None}, [0, 1, 2]),
        ("granitemoehybrid", {"num_hidden_layers": 3, "layer_types": None}, [0, 1, 2]),
        ("nemotron_h", {"num_hidden_layers": 5, "hybrid_override_pattern": "M-*EM"}, [0, 4]),
        ("nemotron_h", {"num_hidden_layers": None, "hybrid_override_pattern": "MM"}, [0, 1]),
        ("nemotron_h", {"num_hidden_layers": 3, "layers_block_type": ["moe", "mamba", "attention"]}, [1]),
        ("lfm2", {"num_hidden_layers": 4, "layer_types": None, "full_attn_idxs": [2]}, [0, 1, 3]),
        ("qwen3_next", {"num_hidden_layers": 6, "layer_types": None, "full_attention_interval": 3}, [0, 1, 3, 4]),
        ("minimax", {"num_hidden_layers": 4, "layer_types": None, "attn_type_list": [0, 0, 1, 0]}, [0, 1, 3]),
        ("zamba2", {"num_hidden_layers": 3}, [0, 1, 2]),
    ],
)
def test_every_way_to_say_which_layers_keep_states(name: str, changes: dict[str, object], layers: list[int]) -> None:
    """Old and new keys for the kinds of layers are understood."""
    assert list(parse_model_config(_config(name, **changes)).state_layers) == layers


def test_kimi_counts_layers_from_one() -> None:
    """Kimi's list of layers starts at 1; ours at 0."""
    model = read_model_config(bundled_models()["kimi_linear"])

    assert model.state_layers[:5] == (0, 1, 2, 3, 5)
    assert model.state_layers[-1] == 26


@pytest.mark.parametrize(
    ("name", "changes", "parameter", "value"),
    [
        ("mamba", {"intermediate_size": None}, "intermediate_size", 1536),
        ("falcon_mamba", {"intermediate_size": 8192, "expand": 16}, "intermediate_size", 8192),
        ("jamba", {"intermediate_size": 14336}, "intermediate_size", 8192),
        ("falcon_h1", {"mamba_d_ssm": None, "mamba_d_head": "auto"}, "intermediate_size", 8192),
        ("falcon_h1", {"mamba_d_ssm": None, "mamba_d_head": "auto"}, "head_dim", 64),
        ("bamba", {"mamba_d_head": "auto"}, "head_dim", 64),
        ("minimax", {"head_dim": None}, "head_dim", 128),
    ],
)
def test_derived_parameters(name: str, changes: dict[str, object], parameter: str, value: int) -> None:
    """What a configuration leaves out is derived as its configuration class does; a feed-forward width is no source."""
    assert parse_model_config(_config(name, **changes)).parameters[parameter] == value


ALIASES = {
    "lfm2_moe": "lfm2",
    "qwen3_5": "qwen3_5_moe_text",
    "qwen3_5_text": "qwen3_5_moe_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "minimax_text_01": "minimax",
}


@pytest.mark.parametrize("model_type", [name for name in MODEL_TYPES if name != "custom"])
def test_every_model_type_is_read(model_type: str) -> None:
    """Each type that the errors offer is read, in its bundled file or in that of a sibling."""
    config = _config(ALIASES.get(model_type, model_type), model_type=model_type)

    assert parse_model_config(config).model_type == model_type


def test_a_nested_text_config_is_followed() -> None:
    """The text model of a multimodal model is what keeps states; the dtype may stand outside."""
    text = _config("qwen3_5_moe_text", torch_dtype=None)

    model = parse_model_config({"model_type": "qwen3_5_moe", "dtype": "float16", "text_config": text})

    assert model.model_type == "qwen3_5_moe_text"
    assert model.dtype is Dtype.FLOAT16


def test_an_unknown_model_type_lists_the_known_ones() -> None:
    """The message for an unknown type helps to find the right one."""
    with pytest.raises(ValueError, match=r"^model_type: 'gpt2' is unknown; known are mamba, .*custom$"):
        parse_model_config({"model_type": "gpt2"})


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("mamba", {"model_type": None}, "model_type: missing"),
        ("mamba", {"state_size": None}, "state_size: missing"),
        ("mamba", {"state_size": "16"}, "state_size: must be an integer, got '16'"),
        ("mamba", {"state_size": True}, "state_size: must be an integer, got True"),
        ("mamba", {"state_size": -1}, "state_size: must be from 0 to "),
        ("mamba", {"num_hidden_layers": 10**9}, "num_hidden_layers: must be from 0 to "),
        ("mamba", {"num_hidden_layers": 0}, "model_type: no layer of this mamba configuration keeps a state"),
        ("mamba", {"torch_dtype": "float64"}, "torch_dtype: 'float64' is unknown"),
        ("mamba", {"text_config": 3}, "text_config: must be an object, got 3"),
        ("jamba", {"attn_layer_period": 0}, "attn_layer_period: must be at least 1"),
        ("bamba", {"attn_layer_indices": [32]}, "attn_layer_indices: must be from 0 to 31"),
        ("bamba", {"mamba_d_head": "auto", "mamba_n_heads": 0}, "mamba_n_heads: 8192 is not divisible by 0"),
        ("qwen3_next", {"layer_types": None}, "layer_types: missing (as is full_attention_interval)"),
        ("qwen3_next", {"layer_types": "all"}, "layer_types: must be a list, got 'all'"),
        ("qwen3_next", {"layer_types": ["linear_attention"]}, "layer_types: has 1 layers, num_hidden_layers says 48"),
        ("qwen3_next", {"layer_types": ["linear"]}, "layer_types[0]: 'linear' is unknown"),
        ("nemotron_h", {"hybrid_override_pattern": "MX"}, "hybrid_override_pattern[1]: 'X' is unknown"),
        ("kimi_linear", {"linear_attn_config": None}, "linear_attn_config: missing"),
        ("kimi_linear", {"linear_attn_config": {"num_heads": 1}}, "linear_attn_config.head_dim: missing"),
    ],
)
def test_a_bad_key_is_named(name: str, changes: dict[str, object], message: str) -> None:
    """A key that is missing, ill-typed or senseless is named at the start of the message."""
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        parse_model_config(_config(name, **changes))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(sorted(bundled_models())), st.data())
def test_a_damaged_config_gives_states_or_a_value_error(name: str, data: st.DataObject) -> None:
    """Whatever stands under one key, parsing ends in states or in a ValueError, and so does laying them out."""
    config = _config(name)
    config[data.draw(st.sampled_from(sorted(config)))] = data.draw(JSON)

    try:
        layout = model_layout(parse_model_config(config))
    except ValueError:
        layout = None

    assert layout is None or layout.image_bytes > 0


@pytest.mark.parametrize(
    ("name", "changes", "arguments", "conv", "temporal"),
    [
        ("mamba2", {}, {}, "bfloat16", "bfloat16"),
        ("mamba2", {"torch_dtype": None, "dtype": "float16"}, {}, "float16", "float16"),
        ("mamba2", {}, {"conv_dtype": "float32"}, "float32", "float32"),
        ("mamba2", {}, {"temporal_dtype": "float32"}, "bfloat16", "float32"),
        ("mamba2", {"torch_dtype": None}, {"conv_dtype": "float16"}, "float16", "float16"),
        ("nemotron_h", {}, {}, "bfloat16", "float32"),
        ("nemotron_h", {}, {"temporal_dtype": "float16"}, "bfloat16", "float16"),
        ("qwen3_next", {"mamba_ssm_dtype": "float32"}, {}, "bfloat16", "float32"),
        ("kimi_linear", {}, {"temporal_dtype": "bfloat16"}, "bfloat16", "float32"),
    ],
)
def test_dtypes(name: str, changes: dict[str, object], arguments: dict[str, str], conv: str, temporal: str) -> None:
    """Conv: as told, else the model's. Temporal: as told, else as the model asks, else as conv; float32 for kda."""
    layout = model_layout(
        parse_model_config(_config(name, **changes)),
        conv_dtype=arguments.get("conv_dtype", "auto"),
        temporal_dtype=arguments.get("temporal_dtype", "auto"),
    )

    assert _dtypes(layout) == {StateKind.CONV: conv, StateKind.TEMPORAL: temporal}


@pytest.mark.parametrize(
    ("name", "changes", "arguments", "message"),
    [
        ("mamba2", {"torch_dtype": None}, {}, "torch_dtype: missing, so conv_dtype and temporal_dtype must be given"),
        ("mamba2", {}, {"conv_dtype": "int64"}, "conv_dtype: 'int64' is unknown"),
        ("mamba2", {}, {"temporal_dtype": ""}, "temporal_dtype: '' is unknown"),
        ("mamba2", {}, {"tp_size": 0}, "tp_size: must be from 1"),
        ("mamba2", {}, {"num_spec": -1}, "num_spec: must be from 0"),
        ("mamba2", {}, {"conv_layout": "XX"}, "conv_layout: must be SD or DS"),
        ("mamba2", {}, {"tp_size": 3}, "num_heads: 128 is not divisible by 3"),
        ("minimax", {}, {"tp_size": 64}, "num_heads: 32 is not divisible by 64"),
        ("qwen3_next", {}, {"tp_size": 32}, "num_k_heads: 16 is not divisible by 32"),
        ("mamba", {"conv_kernel": 1}, {}, "layers.0.conv.0: every dimension must be positive"),
        ("mamba", {}, {"num_spec": 1}, "num_spec: conv states of mamba (mamba1) have no 1 extra rows"),
        ("lfm2", {}, {"num_spec": 1}, "num_spec: conv states of lfm2 (short_conv) have no 1 extra rows"),
    ],
)
def test_a_pool_is_refused(name: str, changes: dict[str, object], arguments: dict[str, Any], message: str) -> None:
    """Laying out is stricter than calculating, and names what is wrong."""
    model = parse_model_config(_config(name, **changes))

    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        model_layout(model, **arguments)


@pytest.mark.parametrize(
    ("name", "has_rows"),
    [
        ("mamba2", True),
        ("qwen3_next", True),
        ("minimax", True),
        ("mamba", False),
        ("lfm2", False),
        ("kimi_linear", False),
    ],
)
def test_who_can_speculate(name: str, has_rows: bool) -> None:
    """A model says whether its conv states get the extra rows that speculative decoding needs."""
    model = read_model_config(bundled_models()[name])

    assert model.has_spec_rows(0)
    assert model.has_spec_rows(2) is has_rows


def test_kda_takes_num_spec_without_effect() -> None:
    """Kimi Delta Attention accepts num_spec and keeps its shapes."""
    model = read_model_config(bundled_models()["kimi_linear"])

    assert model_layout(model, num_spec=3).fingerprint == model_layout(model).fingerprint


CUSTOM: list[dict[str, object]] = [
    {"name": "a.conv", "layer": 3, "kind": "conv", "shape": [5, 16], "dtype": "bfloat16"},
    {"name": "a.state", "layer": 3, "kind": "temporal", "shape": [2, 8, 8], "dtype": "float32"},
    {"name": "note", "kind": "opaque", "shape": [7], "dtype": "uint8"},
]


def test_custom_states_are_taken_as_listed() -> None:
    """A list of states is a layout, the same from a function call and from a configuration file."""
    model = parse_model_config({"model_type": "custom", "states": CUSTOM, "num_spec": 2})

    layout = model_layout(model, tp_size=4, num_spec=2, conv_layout="DS")

    assert [state.name for state in layout.states] == ["a.state", "note", "a.conv"]
    assert layout.states[-1].shape == (5, 16)
    assert layout.fingerprint == custom_layout(CUSTOM, conv_layout="DS").fingerprint
    assert (model.family, model.state_layers) == ("custom", (0, 3))


def test_custom_states_speculate_as_far_as_they_say() -> None:
    """The extra conv rows of listed shapes are what the list declares; none by default."""
    declared = parse_model_config({"model_type": "custom", "states": CUSTOM, "num_spec": 2})
    silent = parse_model_config({"model_type": "custom", "states": CUSTOM})
    without_conv = parse_model_config({"model_type": "custom", "states": CUSTOM[1:]})

    assert [declared.has_spec_rows(2), declared.has_spec_rows(3)] == [True, False]
    assert [silent.has_spec_rows(0), silent.has_spec_rows(1), without_conv.has_spec_rows(9)] == [True, False, True]
    with pytest.raises(ValueError, match=r"^num_spec: "):
        model_layout(silent, num_spec=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": None}, "states[0].name: missing"),
        ({"name": ""}, "states[0].name: must have 1 to 256 characters"),
        ({"kind": "kv"}, "states[0].kind: 'kv' is unknown; known are conv, temporal, opaque"),
        ({"dtype": "float64"}, "states[0].dtype: 'float64' is unknown"),
        ({"shape": [2, "x"]}, "states[0].shape[1]: must be an integer, got 'x'"),
        ({"shape": [2, -1]}, "states[0].shape[1]: must be from 0 to "),
        ({"shape": [2, 0]}, "s: every dimension must be positive"),
        ({"shape": []}, "s: every dimension must be positive"),
        ({"layer": -1}, "states[0].layer: must be from 0 to "),
        ({"size": 3}, "states[0].size: unknown"),
    ],
)
def test_a_bad_custom_state_is_named(change: Mapping[str, object], message: str) -> None:
    """A listed state that makes no sense is named with its key."""
    state = {"name": "s", "kind": "temporal", "shape": [2], "dtype": "float32", **change}

    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        custom_layout([state])


def test_a_folder_stands_for_its_config(tmp_path: Path) -> None:
    """A model's folder may be named instead of the file."""
    (tmp_path / "config.json").write_text(bundled_models()["mamba"].read_text())

    assert read_model_config(tmp_path) == read_model_config(bundled_models()["mamba"])


def test_a_bundled_model_comes_before_a_file_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name means the same wherever one stands; a file or a folder of that name is written as a path."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mamba2").mkdir()

    assert find_model_config("mamba2") == bundled_models()["mamba2"]
    assert find_model_config("./mamba2") == Path("mamba2")
    with pytest.raises(ValueError, match=r"^mamba3: no such file, nor a bundled model: bamba, "):
        find_model_config("mamba3")


@pytest.mark.parametrize("content", [b"{", b"[]", b"3", b"\xff\xfe", b'{"model_type": "gpt2"}'])
def test_a_bad_file_is_named(tmp_path: Path, content: bytes) -> None:
    """A file that is no such configuration is named at the start of the message."""
    path = tmp_path / "config.json"
    path.write_bytes(content)

    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: "):
        read_model_config(path)
