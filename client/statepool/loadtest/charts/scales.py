"""Where values lie on an axis, and which of them are written there."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Values: TypeAlias = NDArray[np.float64]

MOST_TICKS = 6


@dataclass(frozen=True, slots=True)
class Scale:
    """An axis."""

    place: Callable[[Values], Values]
    """Tells where values lie, 0 to 1."""
    ticks: tuple[tuple[float, str], ...]
    """Values that are written, and how."""


def linear(high: float, write: Callable[[float], str]) -> Scale:
    """Makes a scale from 0 up.

    Args:
        high: The largest value.
        write: Writes a value.
    """
    step = _round_step(high / MOST_TICKS) if high > 0 else 1.0
    top = max(high, step)
    values = [number * step for number in range(math.floor(top / step + 1e-9) + 1)]
    return Scale(lambda at: np.asarray(at) / top, tuple((value, write(value)) for value in values))


def logarithmic(low: float, high: float, write: Callable[[float], str]) -> Scale:
    """Makes a scale of powers of ten, with 2 and 5 between them where there are few.

    Args:
        low: The smallest value, more than 0.
        high: The largest value.
        write: Writes a value.
    """
    high = max(high, low * 2)
    first, span = math.log10(low), math.log10(high / low)
    steps = (1, 2, 5) if span < MOST_TICKS / 2 else (1,)
    powers = range(math.floor(first), math.ceil(first + span) + 1)
    values = [step * 10.0**power for power in powers for step in steps]
    ticks = tuple((value, write(value)) for value in values if low <= value * (1 + 1e-9) and value <= high * (1 + 1e-9))
    return Scale(lambda at: (np.log10(np.maximum(at, low)) - first) / span, ticks)


def percentiles(most: float) -> Scale:
    """Makes the scale of HdrHistogram's plots, on which every further nine of a percentile takes the same room.

    Args:
        most: The largest share, below 1.
    """
    nines = max(1.0, -math.log10(1 - most))
    shares = [0.0, 0.5, *(1 - 10.0**-power for power in range(1, math.floor(nines + 1e-9) + 1))]
    ticks = tuple((share, f"{share * 100:.10g}%") for share in shares)
    return Scale(lambda at: np.minimum(1.0, -np.log10(1 - np.asarray(at)) / nines), ticks)


def _round_step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= least * (1 - 1e-9))
