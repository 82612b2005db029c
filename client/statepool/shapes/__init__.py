"""Shapes of the states that one layer of a hybrid or state-space model keeps on one rank.

Pure arithmetic, under the names that the field uses: `MambaStateShapeCalculator` has one class method per family, and
`calculate` is the same by family name. Calculating is lenient (a dimension of a result may be 0); making a pool is
strict, see `statepool.models.model_layout`.
"""

from statepool.shapes.calculator import MambaStateShapeCalculator, StateShapes
from statepool.shapes.checks import MAX_PARAMETER, check_parameter
from statepool.shapes.conv_layout import (
    ConvLayoutName,
    get_conv_state_layout,
    is_conv_state_dim_first,
    resolve_conv_layout,
)
from statepool.shapes.families import FAMILIES, Family, calculate

__all__ = [
    "FAMILIES",
    "MAX_PARAMETER",
    "ConvLayoutName",
    "Family",
    "MambaStateShapeCalculator",
    "StateShapes",
    "calculate",
    "check_parameter",
    "get_conv_state_layout",
    "is_conv_state_dim_first",
    "resolve_conv_layout",
]
