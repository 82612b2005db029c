"""The ``custom`` family: the caller lists the states itself, so that a new architecture needs no release."""

from collections.abc import Iterable, Mapping

from statepool.layout import BlockLayout, Dtype, StateKind, StateSpec
from statepool.models.layer_rules import MAX_LAYERS
from statepool.models.reader import ConfigReader
from statepool.shapes import ConvLayoutName, resolve_conv_layout

_REQUIRED = ("name", "kind", "shape", "dtype")
_MAX_NAME_LENGTH = 256


def custom_layout(states: Iterable[Mapping[str, object]], *, conv_layout: ConvLayoutName | None = None) -> BlockLayout:
    """Lays out a block from a list of states.

    Args:
        states: One mapping per state: ``name``; ``kind`` (conv, temporal or opaque); ``shape`` in one block on one
            rank, a conv state's in the conv layout; ``dtype`` by its torch name; optionally ``layer``, from 0.
        conv_layout: SD, DS, or None for `statepool.shapes.get_conv_state_layout`.

    Returns:
        The block image of one rank.

    Raises:
        ValueError: A state has an unknown, missing or ill-typed key (the message names it), a dimension that is not
            positive, or a name that occurs twice; or there is no state at all.
    """
    return BlockLayout.of(read_states(ConfigReader({"states": list(states)})), resolve_conv_layout(conv_layout))


def read_states(config: ConfigReader) -> tuple[StateSpec, ...]:
    """Reads the list of states under ``states``.

    Raises:
        ValueError: As `custom_layout`, for unknown, missing and ill-typed keys.
    """
    return tuple(_state(entry) for entry in config.readers("states"))


def read_dtype(config: ConfigReader, key: str) -> Dtype:
    """Reads an element type by its torch name.

    Raises:
        ValueError: The key is missing or names no element type of a state.
    """
    return Dtype(_one_of(config, key, tuple(Dtype)))


def _state(entry: ConfigReader) -> StateSpec:
    for key in entry.values:
        if key not in {*_REQUIRED, "layer"}:
            raise ValueError(f"{entry.path}{key}: unknown; a state has {', '.join(_REQUIRED)} and layer")
    name = entry.string("name")
    if not 0 < len(name) <= _MAX_NAME_LENGTH:
        raise ValueError(f"{entry.path}name: must have 1 to {_MAX_NAME_LENGTH} characters, got {len(name)}")
    layer = entry.integer("layer", most=MAX_LAYERS) if entry.has("layer") else 0
    kind = StateKind(_one_of(entry, "kind", tuple(StateKind)))
    return StateSpec(name, layer, kind, read_dtype(entry, "dtype"), entry.integers("shape"))


def _one_of(config: ConfigReader, key: str, known: tuple[str, ...]) -> str:
    value = config.string(key)
    if value not in known:
        raise ValueError(f"{config.path}{key}: {value[:64]!r} is unknown; known are {', '.join(known)}")
    return value
