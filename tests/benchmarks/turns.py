"""Measures two operations in turns, so that what else the machine does falls on both alike."""

import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

TURNS = 80
"""Turns of each operation."""
ROUNDS = 25
"""Operations of a turn: some milliseconds, which the load of a shared machine seldom changes in between."""

Operation: TypeAlias = Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Comparison:
    """An operation against its floor."""

    us: float
    """Time of the operation: the median of its turns, microseconds."""
    floor_us: float
    """Time of its floor."""
    ratio: float
    """Median of the ratios of a turn to the turn of the floor beside it."""


async def turn_us(operation: Operation) -> float:
    """Measures an operation in one turn, microseconds."""
    started = time.perf_counter()
    for _ in range(ROUNDS):
        await operation()
    return (time.perf_counter() - started) / ROUNDS * 1e6


async def compare(operation: Operation, floor: Operation) -> Comparison:
    """Measures an operation against a floor; one turn of each is left out, in which everything is new."""
    await turn_us(operation), await turn_us(floor)
    turns = [(await turn_us(operation), await turn_us(floor)) for _ in range(TURNS)]
    ours, floors = zip(*turns, strict=True)
    ratio = statistics.median(mine / bare for mine, bare in turns)
    return Comparison(statistics.median(ours), statistics.median(floors), ratio)
