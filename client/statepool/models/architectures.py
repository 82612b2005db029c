"""What each known ``model_type`` keeps: its family, where its parameters stand, and which layers have states.

Sources: the configuration classes and modelling code of Hugging Face transformers, and for `kimi_linear` and
`minimax_text_01` the code published beside the weights.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from statepool.models.layer_rules import (
    LayerRule,
    every_layer,
    first_of,
    lettered,
    listed,
    named,
    not_listed,
    not_periodic,
    numbered,
)
from statepool.models.reader import ConfigReader

Source: TypeAlias = Callable[[ConfigReader], int]
"""Finds one parameter in a configuration."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """How to read one kind of configuration."""

    family: str
    """A key of `statepool.shapes.FAMILIES`."""
    parameters: Mapping[str, Source]
    """Source of each parameter but the tensor-parallel size and num_spec."""
    state_layers: LayerRule
    """Finds the layers that keep a state."""


def _key(key: str, inside: str = "") -> Source:
    return lambda config: (config.nested(inside) if inside else config).integer(key)


def _product(one: str, other: str) -> Source:
    return lambda config: config.integer(one) * config.integer(other)


def _either(key: str, fallback: Source) -> Source:
    """Takes a key, or what the configuration class derives where the key is missing or "auto"."""
    return lambda config: config.integer(key) if config.has(key) and config.values[key] != "auto" else fallback(config)


def _quotient(total: Source, count_key: str) -> Source:
    def source(config: ConfigReader) -> int:
        count = config.integer(count_key)
        if count == 0 or total(config) % count:
            raise ValueError(f"{config.path}{count_key}: {total(config)} is not divisible by {count}")
        return total(config) // count

    return source


def _mamba2(
    intermediate_size: Source, *, heads: str, head_dim: Source, groups: str, state: str, conv: str
) -> dict[str, Source]:
    return {
        "intermediate_size": intermediate_size,
        "n_groups": _key(groups),
        "num_heads": _key(heads),
        "head_dim": head_dim,
        "state_size": _key(state),
        "conv_kernel": _key(conv),
    }


def _mamba2_prefixed(intermediate_size: Source) -> dict[str, Source]:
    """Reads the ``mamba_*`` keys that several hybrid models share."""
    return _mamba2(
        intermediate_size,
        heads="mamba_n_heads",
        head_dim=_either("mamba_d_head", _quotient(intermediate_size, "mamba_n_heads")),
        groups="mamba_n_groups",
        state="mamba_d_state",
        conv="mamba_d_conv",
    )


_EXPANDED = _either("intermediate_size", _product("expand", "hidden_size"))
# In a hybrid model `intermediate_size` is the width of its feed-forward layers, so it is no source here.
_MAMBA_EXPANDED = _product("mamba_expand", "hidden_size")

_MAMBA1 = Architecture(
    "mamba1",
    {"intermediate_size": _EXPANDED, "state_size": _key("state_size"), "conv_kernel": _key("conv_kernel")},
    every_layer,
)
_MAMBA2 = Architecture(
    "mamba2",
    _mamba2(
        _EXPANDED,
        heads="num_heads",
        head_dim=_key("head_dim"),
        groups="n_groups",
        state="state_size",
        conv="conv_kernel",
    ),
    every_layer,
)
_MAMBA_BLOCKS = {
    "layers_block_type": named("layers_block_type", "mamba", "attention"),
    "layer_types": named("layer_types", "mamba", "attention"),
}
_JAMBA = Architecture(
    "mamba1",
    {"intermediate_size": _MAMBA_EXPANDED, "state_size": _key("mamba_d_state"), "conv_kernel": _key("mamba_d_conv")},
    first_of(_MAMBA_BLOCKS | {"attn_layer_period": not_periodic("attn_layer_period", "attn_layer_offset")}),
)
_BAMBA = Architecture(
    "mamba2",
    _mamba2_prefixed(_MAMBA_EXPANDED),
    first_of(_MAMBA_BLOCKS | {"attn_layer_indices": not_listed("attn_layer_indices"), "": every_layer}),
)
_GRANITE = Architecture("mamba2", _mamba2_prefixed(_MAMBA_EXPANDED), first_of({**_MAMBA_BLOCKS, "": every_layer}))
_FALCON_H1 = Architecture("mamba2", _mamba2_prefixed(_either("mamba_d_ssm", _MAMBA_EXPANDED)), every_layer)
_NEMOTRON_H = Architecture(
    "mamba2",
    _mamba2(
        _product("mamba_num_heads", "mamba_head_dim"),
        heads="mamba_num_heads",
        head_dim=_key("mamba_head_dim"),
        groups="n_groups",
        state="ssm_state_size",
        conv="conv_kernel",
    ),
    first_of(
        {
            "layers_block_type": named("layers_block_type", "mamba", "attention", "mlp", "moe"),
            "hybrid_override_pattern": lettered("hybrid_override_pattern", "M", "*", "-", "E"),
        }
    ),
)
_ZAMBA2 = Architecture(
    "mamba2",
    _mamba2(
        _MAMBA_EXPANDED,
        heads="n_mamba_heads",
        head_dim=_either("mamba_headdim", _quotient(_MAMBA_EXPANDED, "n_mamba_heads")),
        groups="mamba_ngroups",
        state="mamba_d_state",
        conv="mamba_d_conv",
    ),
    every_layer,  # its hybrid layers are Mamba layers with shared attention in front
)
_LFM2 = Architecture(
    "short_conv",
    {"intermediate_size": _key("hidden_size"), "conv_kernel": _key("conv_L_cache")},
    first_of(
        {
            "layer_types": named("layer_types", "conv", "full_attention"),
            "full_attn_idxs": not_listed("full_attn_idxs"),
        }
    ),
)
_LINEAR_TYPES = named("layer_types", "linear_attention", "full_attention")
_GATED_DELTA_NET = Architecture(
    "gated_delta_net",
    {
        "num_k_heads": _key("linear_num_key_heads"),
        "num_v_heads": _key("linear_num_value_heads"),
        "head_k_dim": _key("linear_key_head_dim"),
        "head_v_dim": _key("linear_value_head_dim"),
        "conv_kernel_size": _key("linear_conv_kernel_dim"),
    },
    first_of({"layer_types": _LINEAR_TYPES, "full_attention_interval": not_periodic("full_attention_interval")}),
)
_KIMI_LINEAR = Architecture(
    "kda",
    {
        "num_heads": _key("num_heads", "linear_attn_config"),
        "head_dim": _key("head_dim", "linear_attn_config"),
        "conv_kernel_size": _key("short_conv_kernel_size", "linear_attn_config"),
    },
    listed("kda_layers", first=1, inside="linear_attn_config"),
)
_MINIMAX = Architecture(
    "linear_attention",
    {
        "num_heads": _key("num_attention_heads"),
        "head_dim": _either("head_dim", _quotient(_key("hidden_size"), "num_attention_heads")),
    },
    first_of({"layer_types": _LINEAR_TYPES, "attn_type_list": numbered("attn_type_list", 0, 1)}),
)

ARCHITECTURES: Mapping[str, Architecture] = {
    "mamba": _MAMBA1,
    "falcon_mamba": _MAMBA1,
    "mamba2": _MAMBA2,
    "jamba": _JAMBA,
    "bamba": _BAMBA,
    "granitemoehybrid": _GRANITE,
    "falcon_h1": _FALCON_H1,
    "nemotron_h": _NEMOTRON_H,
    "zamba2": _ZAMBA2,
    "lfm2": _LFM2,
    "lfm2_moe": _LFM2,
    "qwen3_next": _GATED_DELTA_NET,
    "qwen3_5": _GATED_DELTA_NET,
    "qwen3_5_text": _GATED_DELTA_NET,
    "qwen3_5_moe": _GATED_DELTA_NET,
    "qwen3_5_moe_text": _GATED_DELTA_NET,
    "olmo_hybrid": _GATED_DELTA_NET,
    "kimi_linear": _KIMI_LINEAR,
    "minimax": _MINIMAX,
    "minimax_text_01": _MINIMAX,
}
"""How to read each ``model_type``."""

MODEL_TYPES = (*ARCHITECTURES, "custom")
"""Every ``model_type`` that a configuration may have."""
