"""Which of the two conv layouts this process means."""

import functools
import os
from typing import Literal, TypeAlias

from statepool.layout import ConvLayout

ConvLayoutName: TypeAlias = ConvLayout | Literal["SD", "DS"]
"""A conv layout, or its name."""

CONV_LAYOUT_VARIABLES = ("STATEPOOL_CONV_LAYOUT", "VLLM_SSM_CONV_STATE_LAYOUT")
"""Where the conv layout comes from: the first that is set and not empty."""


@functools.lru_cache(maxsize=1)
def get_conv_state_layout() -> ConvLayout:
    """Reads the conv layout of this process from the environment, once.

    Returns:
        ``STATEPOOL_CONV_LAYOUT``, else the engine's own ``VLLM_SSM_CONV_STATE_LAYOUT``, else SD. An empty variable
        counts as unset.

    Raises:
        ValueError: The variable is neither SD nor DS.
    """
    return conv_layout_of_environment()[0]


def conv_layout_of_environment() -> tuple[ConvLayout, str | None]:
    """Reads the conv layout from the environment as it is now.

    Returns:
        The layout, as `get_conv_state_layout`; the variable that it comes from, or None where it is the default.

    Raises:
        ValueError: The variable is neither SD nor DS.
    """
    for variable in CONV_LAYOUT_VARIABLES:
        if value := os.environ.get(variable):
            return _conv_layout(value, variable), variable
    return ConvLayout.SD, None


def is_conv_state_dim_first() -> bool:
    """Tells whether conv states of this process are ``(dim, len)``: whether the layout is DS.

    Raises:
        ValueError: As `get_conv_state_layout`.
    """
    return get_conv_state_layout() is ConvLayout.DS


def resolve_conv_layout(conv_layout: ConvLayoutName | None) -> ConvLayout:
    """Turns the ``conv_layout`` argument of a calculation into a layout; None means `get_conv_state_layout`.

    Raises:
        ValueError: Neither SD nor DS, or None and a bad variable in the environment.
    """
    return get_conv_state_layout() if conv_layout is None else _conv_layout(conv_layout, "conv_layout")


def _conv_layout(value: str, name: str) -> ConvLayout:
    try:
        return ConvLayout(value)
    except ValueError:
        raise ValueError(f"{name}: must be SD or DS, got {value[:64]!r}") from None
