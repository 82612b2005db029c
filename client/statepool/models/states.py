"""What a model keeps, before it is split over ranks and placed."""

from collections.abc import Mapping
from dataclasses import dataclass

from statepool.layout import Dtype, StateKind, StateSpec
from statepool.shapes import FAMILIES, ConvLayoutName, StateShapes, calculate


@dataclass(frozen=True, slots=True)
class ModelStates:
    """The states of a model, as its configuration describes them."""

    model_type: str
    """The configuration's ``model_type`` (the nested one, where a text model is nested)."""
    family: str
    """A key of `statepool.shapes.FAMILIES`, or ``custom``."""
    parameters: Mapping[str, int]
    """Arguments of the family's calculation but the tensor-parallel size and num_spec; of ``custom``: ``num_spec``,
    the extra conv rows that its shapes include."""
    state_layers: tuple[int, ...]
    """Indices, from 0, of the layers that keep a state."""
    dtype: Dtype | None
    """The model's own dtype, or None where the configuration does not say."""
    temporal_dtype: Dtype | None = None
    """What the configuration wants temporal states to be, or None: as the conv states."""
    custom_states: tuple[StateSpec, ...] = ()
    """The listed states of a ``custom`` model, as one rank holds them; empty for all others."""

    def state_shapes(
        self, tp_size: int = 1, num_spec: int = 0, conv_layout: ConvLayoutName | None = None
    ) -> StateShapes:
        """Calculates the shapes of one state layer on one rank.

        Args:
            tp_size: Tensor-parallel ranks.
            num_spec: Speculative tokens; without effect on families that have no such parameter.
            conv_layout: SD, DS, or None for `statepool.shapes.get_conv_state_layout`.

        Returns:
            Conv states first, the temporal state last.

        Raises:
            ValueError: As `statepool.shapes.calculate`; also for ``custom``, which is not calculated.
        """
        if self.family == "custom":
            raise ValueError("family: custom states are listed, not calculated")
        family = FAMILIES[self.family]
        arguments = {**self.parameters, family.tp_parameter: tp_size}
        if "num_spec" in family.parameters:
            arguments["num_spec"] = num_spec
        return calculate(self.family, arguments, conv_layout)

    def has_spec_rows(self, num_spec: int) -> bool:
        """Tells whether every conv state of a layout made for ``num_spec`` has that many extra rows.

        Speculative decoding of ``num_spec`` tokens needs them; a model without conv states needs none.
        """
        if num_spec == 0:
            return True
        if self.family == "custom":
            no_conv = all(state.kind is not StateKind.CONV for state in self.custom_states)
            return no_conv or num_spec <= self.parameters["num_spec"]
        family = FAMILIES[self.family]
        return family.extends_conv_states or StateKind.CONV not in family.kinds
