"""Which layers of a model keep a state: one rule per way in which configurations say it."""

from collections.abc import Callable, Mapping
from typing import TypeAlias

from statepool.models.reader import ConfigReader

LayerRule: TypeAlias = Callable[[ConfigReader], tuple[int, ...]]
"""Finds the indices, from 0, of the state layers of a model."""

MAX_LAYERS = 10_000
"""More layers than any model has; bounds what a damaged file can ask for."""


def every_layer(config: ConfigReader) -> tuple[int, ...]:
    """Takes all ``num_hidden_layers``.

    Raises:
        ValueError: The number is missing or ill-typed.
    """
    return tuple(range(_layer_count(config)))


def first_of(rules: Mapping[str, LayerRule]) -> LayerRule:
    """Makes a rule that takes the first of several keys that the configuration has.

    Raises:
        ValueError: From the rule: none of the keys is there, and the empty key, which stands for "else", is no rule.
    """

    def rule(config: ConfigReader) -> tuple[int, ...]:
        for key, found in rules.items():
            if not key or config.has(key):
                return found(config)
        first, *others = rules
        raise ValueError(f"{config.path}{first}: missing" + (f" (as is {', '.join(others)})" if others else ""))

    return rule


def named(key: str, state: str, *others: str) -> LayerRule:
    """Makes a rule from a list that names each layer's type, one of which keeps the state.

    Raises:
        ValueError: From the rule: another type than the named ones, or not one type per layer.
    """

    def rule(config: ConfigReader) -> tuple[int, ...]:
        return _matching(config, key, config.strings(key), state, others)

    return rule


def lettered(key: str, state: str, *others: str) -> LayerRule:
    """Makes a rule from a string with one letter per layer, one of which keeps the state.

    Raises:
        ValueError: From the rule: another letter than the named ones, or not one letter per layer.
    """

    def rule(config: ConfigReader) -> tuple[int, ...]:
        return _matching(config, key, tuple(config.string(key)), state, others)

    return rule


def numbered(key: str, state: int, *others: int) -> LayerRule:
    """Makes a rule from a list with a number for each layer's type, one of which keeps the state.

    Raises:
        ValueError: From the rule: another number than the named ones, or not one number per layer.
    """

    def rule(config: ConfigReader) -> tuple[int, ...]:
        types = tuple(str(number) for number in config.integers(key))
        return _matching(config, key, types, str(state), tuple(str(other) for other in others))

    return rule


def listed(key: str, *, first: int, inside: str = "") -> LayerRule:
    """Makes a rule from a list of the state layers' numbers.

    Args:
        key: Key of the list.
        first: Number of the first layer: 0 or 1.
        inside: Key of the object that holds the list, if not the configuration itself.

    Raises:
        ValueError: From the rule: a number that is no layer's.
    """

    def rule(config: ConfigReader) -> tuple[int, ...]:
        holder = config.nested(inside) if inside else config
        return _indices(holder, key, first, _layer_count(config))

    return rule


def not_listed(key: str) -> LayerRule:
    """Makes a rule from a list of the indices, from 0, of the layers that keep no state.

    Raises:
        ValueError: From the rule: an index that is no layer's.
    """

    def rule(config: ConfigReader) -> tuple[int, ...]:
        count = _layer_count(config)
        stateless = set(_indices(config, key, 0, count))
        return tuple(layer for layer in range(count) if layer not in stateless)

    return rule


def not_periodic(period_key: str, offset_key: str | None = None) -> LayerRule:
    """Makes a rule where one layer in each period keeps no state.

    Args:
        period_key: Key of the period.
        offset_key: Key of that layer's index in its period; None where it is the last.

    Raises:
        ValueError: From the rule: the period is 0.
    """

    def rule(config: ConfigReader) -> tuple[int, ...]:
        period = config.integer(period_key)
        if period == 0:
            raise ValueError(f"{config.path}{period_key}: must be at least 1, got 0")
        offset = period - 1 if offset_key is None else config.integer(offset_key)
        return tuple(layer for layer in range(_layer_count(config)) if layer % period != offset)

    return rule


def _layer_count(config: ConfigReader) -> int:
    return config.integer("num_hidden_layers", most=MAX_LAYERS)


def _indices(config: ConfigReader, key: str, first: int, count: int) -> tuple[int, ...]:
    numbers = sorted(set(config.integers(key)))
    if numbers and (numbers[0] < first or numbers[-1] >= first + count):
        raise ValueError(f"{config.path}{key}: must be from {first} to {first + count - 1}, got {numbers}")
    return tuple(number - first for number in numbers)


def _matching(
    config: ConfigReader, key: str, types: tuple[str, ...], state: str, others: tuple[str, ...]
) -> tuple[int, ...]:
    # A type that nobody knows may well keep a state: leaving it out would make blocks too small without a word.
    for layer, layer_type in enumerate(types):
        if layer_type != state and layer_type not in others:
            known = ", ".join((state, *others))
            raise ValueError(f"{config.path}{key}[{layer}]: {layer_type!r} is unknown; known are {known}")
    if config.has("num_hidden_layers") and _layer_count(config) != len(types):
        raise ValueError(f"{config.path}{key}: has {len(types)} layers, num_hidden_layers says {_layer_count(config)}")
    return tuple(layer for layer, layer_type in enumerate(types) if layer_type == state)
