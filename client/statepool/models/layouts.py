"""From a model's states to the layout of a block: stricter than calculating, since memory is made from it."""

from collections.abc import Iterator

from statepool.layout import BlockLayout, ConvLayout, Dtype, StateKind, StateSpec
from statepool.models.states import ModelStates
from statepool.shapes import FAMILIES, ConvLayoutName, check_parameter, resolve_conv_layout

AUTO = "auto"
"""Stands for the dtype that the model or the other states have."""


def model_layout(
    model: ModelStates,
    *,
    tp_size: int = 1,
    num_spec: int = 0,
    conv_layout: ConvLayoutName | None = None,
    conv_dtype: str = AUTO,
    temporal_dtype: str = AUTO,
) -> BlockLayout:
    """Lays out one block of a model on one tensor-parallel rank.

    States are named ``layers.{i}.conv.{k}`` and ``layers.{i}.temporal``; the listed states of a ``custom`` model are
    taken as they are, whatever the other arguments say about ranks and dtypes.

    Args:
        model: From `parse_model_config` or `read_model_config`.
        tp_size: Tensor-parallel ranks.
        num_spec: Speculative tokens per step: extra rows of the conv states.
        conv_layout: SD, DS, or None for `statepool.shapes.get_conv_state_layout`.
        conv_dtype: The engine's ``mamba_cache_dtype``; "auto" is the model's dtype.
        temporal_dtype: The engine's ``mamba_ssm_cache_dtype``; "auto" is what the model's configuration asks for, else
            as the conv states. Kimi Delta Attention keeps float32 whatever is said here.

    Returns:
        The block image of one rank.

    Raises:
        ValueError: tp_size does not divide a head count (named) or another size, a dimension is not positive, the
            model's conv states cannot have num_spec extra rows, or a dtype is unknown.
    """
    _check_ranks(model, check_parameter("tp_size", tp_size))
    _check_speculation(model, check_parameter("num_spec", num_spec))
    layout = resolve_conv_layout(conv_layout)
    if model.family == "custom":
        return BlockLayout.of(model.custom_states, layout)
    dtypes = _dtypes(model, conv_dtype, temporal_dtype)
    return BlockLayout.of(_states(model, tp_size, num_spec, layout, dtypes), layout)


def _check_ranks(model: ModelStates, tp_size: int) -> None:
    for name in FAMILIES[model.family].head_counts if model.family in FAMILIES else ():
        count = model.parameters.get(name, 0)
        if count % tp_size:
            raise ValueError(f"{name}: {count} is not divisible by {tp_size}")


def _check_speculation(model: ModelStates, num_spec: int) -> None:
    # kda declares that num_spec is accepted and without effect; whoever speculates asks has_spec_rows.
    if model.family != "kda" and not model.has_spec_rows(num_spec):
        raise ValueError(f"num_spec: conv states of {model.model_type} ({model.family}) have no {num_spec} extra rows")


def _dtypes(model: ModelStates, conv_dtype: str, temporal_dtype: str) -> dict[StateKind, Dtype]:
    """Finds the dtype of each kind of state that the family has (the dtype rule of the field)."""
    kinds = FAMILIES[model.family].kinds
    conv, temporal = _dtype("conv_dtype", conv_dtype), _dtype("temporal_dtype", temporal_dtype)
    conv = conv or model.dtype
    temporal = Dtype.FLOAT32 if model.family.startswith("kda") else temporal or model.temporal_dtype or conv
    found = {StateKind.CONV: conv, StateKind.TEMPORAL: temporal}
    missing = [f"{kind}_dtype" for kind in dict.fromkeys(kinds) if found[kind] is None]
    if missing:
        raise ValueError(f"torch_dtype: missing, so {' and '.join(missing)} must be given")
    return {kind: dtype for kind, dtype in found.items() if dtype is not None}


def _dtype(name: str, value: str) -> Dtype | None:
    if value == AUTO:
        return None
    try:
        return Dtype(value)
    except ValueError:
        raise ValueError(f"{name}: {value[:64]!r} is unknown; known are auto, {', '.join(Dtype)}") from None


def _states(
    model: ModelStates, tp_size: int, num_spec: int, conv_layout: ConvLayout, dtypes: dict[StateKind, Dtype]
) -> Iterator[StateSpec]:
    shapes = model.state_shapes(tp_size, num_spec, conv_layout)
    kinds = FAMILIES[model.family].kinds
    for layer in model.state_layers:
        for index, (kind, shape) in enumerate(zip(kinds, shapes, strict=True)):
            name = f"layers.{layer}.temporal" if kind is StateKind.TEMPORAL else f"layers.{layer}.conv.{index}"
            yield StateSpec(name, layer, kind, dtypes[kind], shape)
