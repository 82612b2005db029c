"""The families by name, for callers that read the family from a request or a file."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from statepool.layout import StateKind
from statepool.shapes.calculator import MambaStateShapeCalculator, StateShapes
from statepool.shapes.conv_layout import ConvLayoutName


@dataclass(frozen=True, slots=True)
class Family:
    """What the rest of statepool needs to know of a family."""

    state_shape: Callable[..., StateShapes]
    """The class method that calculates its shapes."""
    kinds: tuple[StateKind, ...]
    """Kind of each state, in the order of the shapes."""
    head_counts: tuple[str, ...] = ()
    """Parameters that are numbers of heads; a pool's tensor-parallel size must divide each."""
    extends_conv_states: bool = False
    """Whether num_spec adds that many rows to its conv states."""

    @property
    def parameters(self) -> Mapping[str, bool]:
        """Name of each parameter, and whether it must be given."""
        declared = inspect.signature(self.state_shape).parameters.values()
        return {item.name: item.default is item.empty for item in declared if item.name != "conv_layout"}

    @property
    def tp_parameter(self) -> str:
        """The parameter that is the tensor-parallel size."""
        return "tp_size" if "tp_size" in self.parameters else "tp_world_size"


_CONV, _TEMPORAL = StateKind.CONV, StateKind.TEMPORAL
_OF = MambaStateShapeCalculator

FAMILIES: Mapping[str, Family] = {
    "linear_attention": Family(_OF.linear_attention_state_shape, (_TEMPORAL,), ("num_heads",)),
    "mamba1": Family(_OF.mamba1_state_shape, (_CONV, _TEMPORAL)),
    "mamba2": Family(_OF.mamba2_state_shape, (_CONV, _TEMPORAL), ("num_heads",), True),
    "short_conv": Family(_OF.short_conv_state_shape, (_CONV,)),
    "gated_delta_net": Family(
        _OF.gated_delta_net_state_shape, (_CONV, _TEMPORAL), ("num_k_heads", "num_v_heads"), True
    ),
    "kda": Family(_OF.kda_state_shape, (_CONV, _CONV, _CONV, _TEMPORAL), ("num_heads", "num_k_heads")),
    "kda_fused": Family(_OF.kda_fused_state_shape, (_CONV, _TEMPORAL), ("num_heads", "num_k_heads"), True),
}
"""Every family that is calculated, by name."""


def calculate(
    family: str, parameters: Mapping[str, int | None], conv_layout: ConvLayoutName | None = None
) -> StateShapes:
    """Calculates the state shapes of a family that is named at run time.

    Args:
        family: A key of `FAMILIES`.
        parameters: Arguments of the family's class method by name; None stands for a default of None.
        conv_layout: SD, DS, or None for `get_conv_state_layout`.

    Returns:
        Shapes of one layer's states on one rank, conv states first.

    Raises:
        ValueError: The family is unknown, a parameter is unknown, missing, no integer or out of range (it is named),
            or the tensor-parallel size does not divide what it must.
    """
    known = FAMILIES.get(family)
    if known is None:
        raise ValueError(f"family: {family[:64]!r} is unknown; known are {', '.join(FAMILIES)}")
    for name in parameters:
        if name not in known.parameters:
            raise ValueError(f"{name[:64]}: not a parameter of {family}, which has {', '.join(known.parameters)}")
    for name, required in known.parameters.items():
        if required and name not in parameters:
            raise ValueError(f"{name}: missing, {family} needs it")
    return known.state_shape(**parameters, conv_layout=conv_layout)
