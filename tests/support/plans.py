"""Copy plans for engines: written by hand, or drawn with everything that makes their order matter."""

import numpy as np
from hypothesis import strategies as st

from statepool.copies import CopyPlan
from support.arenas import BLOCK_COUNT


def plan_of(rows: list[tuple[int, int, int, int]]) -> CopyPlan:
    """Builds a plan from (source, destination, bias, temporal source) rows."""
    columns = np.array(rows, np.int64).reshape(-1, 4).T
    return CopyPlan(columns[0], columns[1], columns[2], columns[3])


@st.composite
def plans(draw: st.DrawFn) -> CopyPlan:
    """Draws plans with chains, swaps, cycles, shifts in place and other temporal sources; destinations are distinct."""
    blocks = st.integers(1, BLOCK_COUNT - 1)
    destinations = draw(st.lists(blocks, unique=True, max_size=BLOCK_COUNT - 1))
    rows = []
    for dst in destinations:
        src = draw(st.one_of(blocks, st.just(dst)))
        rows.append((src, dst, draw(st.integers(0, 2)), draw(st.one_of(st.just(src), blocks))))
    return plan_of(rows)
