"""Reading a configuration mapping."""

from collections.abc import Mapping

from statepool.layout import Dtype
from statepool.models.architectures import ARCHITECTURES, MODEL_TYPES
from statepool.models.custom import read_dtype, read_states
from statepool.models.reader import ConfigReader
from statepool.models.states import ModelStates


def parse_model_config(config: Mapping[str, object]) -> ModelStates:
    """Finds out what states a model keeps.

    Args:
        config: What a Hugging Face ``config.json`` holds. A nested ``text_config`` is followed. Or
            ``{"model_type": "custom", "states": [{"name", "kind", "shape", "dtype", "layer"?}, ...], "num_spec"?}``.

    Returns:
        Family, parameters, state layers and dtypes.

    Raises:
        ValueError: The model type is unknown (the message lists the known ones), a key is missing or ill-typed (the
            message names it), or no layer keeps a state.
    """
    outer = ConfigReader(config)
    text = outer.nested("text_config") if outer.has("text_config") else outer
    model_type = (text if text.has("model_type") else outer).string("model_type")
    if model_type == "custom":
        return _custom(text)
    architecture = ARCHITECTURES.get(model_type)
    if architecture is None:
        raise ValueError(f"model_type: {model_type!r} is unknown; known are {', '.join(MODEL_TYPES)}")
    parameters = {name: source(text) for name, source in architecture.parameters.items()}
    layers = architecture.state_layers(text)
    if not layers:
        raise ValueError(f"model_type: no layer of this {model_type} configuration keeps a state")
    return ModelStates(
        model_type,
        architecture.family,
        parameters,
        layers,
        dtype=_dtype(text) or _dtype(outer),
        temporal_dtype=_temporal_dtype(text) or _temporal_dtype(outer),
    )


def _custom(config: ConfigReader) -> ModelStates:
    states = read_states(config)
    num_spec = config.integer("num_spec") if config.has("num_spec") else 0
    layers = tuple(sorted({state.layer for state in states}))
    return ModelStates("custom", "custom", {"num_spec": num_spec}, layers, None, None, states)


def _dtype(config: ConfigReader) -> Dtype | None:
    return _first_dtype(config, "dtype", "torch_dtype")


def _temporal_dtype(config: ConfigReader) -> Dtype | None:
    # Nemotron-H and Qwen3.5 say so under these names; engines obey unless they are told otherwise.
    return _first_dtype(config, "mamba_ssm_cache_dtype", "mamba_ssm_dtype")


def _first_dtype(config: ConfigReader, *keys: str) -> Dtype | None:
    for key in keys:
        if config.has(key) and config.values[key] != "auto":
            return read_dtype(config, key)
    return None
