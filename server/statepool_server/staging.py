"""Copies that go through files, so that they can be run again after the process died in the middle of them.

A copy that overwrites what it, or another of the same plan, reads cannot simply be run again. So its sources are saved
first, in a file on the same tmpfs as the arena; from there they can be written any number of times.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from statepool.copies import CopyPlan
from statepool.host.regions import Bytes, hazards
from statepool.host.shifts import copy_shifted
from statepool.layout import ArenaLayout, StateKind, StateSpec
from statepool_server import failpoints


class _Span(NamedTuple):
    """A state of a copy."""

    state: StateSpec
    source: int  # bytes from the arena's start
    destination: int
    bias: int  # rows


def overwriting(plan: CopyPlan) -> NDArray[np.bool_]:
    """Finds the rows that overwrite what they, or other rows, read, ``[n]``; the others can be run before or after."""
    if not len(plan):
        return np.zeros(0, np.bool_)
    shifted = (plan.src_blocks == plan.dst_blocks) & (plan.token_biases > 0)
    found: NDArray[np.bool_] = shifted | hazards(plan)
    return found


def save(memory: Bytes, layout: ArenaLayout, plan: CopyPlan, path: Path) -> bool:
    """Saves what a plan reads.

    Args:
        memory: The arena, uint8, ``[arena bytes]``.
        layout: Its layout.
        plan: The copies.
        path: Where; what is there is replaced.

    Returns:
        Whether there was room for it; if not, nothing is left.
    """
    try:
        with path.open("wb") as file:
            for span in _spans(layout, plan):
                file.write(memory[span.source : span.source + span.state.nbytes].data)
    except OSError:  # no room: the copies are done without, as long as nobody dies meanwhile
        path.unlink(missing_ok=True)
        return False
    return True


def write(memory: Bytes, layout: ArenaLayout, plan: CopyPlan, path: Path) -> None:
    """Writes what was saved to where the plan says.

    Raises:
        OSError: It was not saved.
    """
    saved, start = np.fromfile(path, np.uint8), 0
    for span in _spans(layout, plan):
        if start <= len(saved) // 2 < start + span.state.nbytes:
            failpoints.reach("copy.half")
        nbytes = span.state.nbytes
        source, destination = saved[start : start + nbytes], memory[span.destination : span.destination + nbytes]
        copy_shifted(source, destination, span.state, span.bias, layout.block.conv_layout)
        start += nbytes


def _spans(layout: ArenaLayout, plan: CopyPlan) -> Iterator[_Span]:
    """Lists the states that a plan moves, always in the same order."""
    columns = (plan.src_blocks, plan.dst_blocks, plan.token_biases, plan.temporal_src_blocks)
    for src, dst, bias, temporal_src in zip(*(column.tolist() for column in columns), strict=True):
        for spec in layout.tensors:
            source = temporal_src if spec.state.kind is StateKind.TEMPORAL else src
            rows = bias if spec.state.kind is StateKind.CONV else 0
            if source != dst or rows:
                base, stride = spec.arena_offset, spec.block_stride
                yield _Span(spec.state, base + source * stride, base + dst * stride, rows)
