"""From the states of one layout to those of another: other speculative rows, another conv layout, other ranks.

Pure functions over numpy arrays: `plan_conversion` decides whether states of one pool can become those of another, and
how; a `Conversion` puts images of the one together into images of the other.
"""

from statepool.convert.conversion import Conversion, PoolStates, plan_conversion
from statepool.convert.segments import Segment, conv_segments

__all__ = ["Conversion", "PoolStates", "Segment", "conv_segments", "plan_conversion"]
