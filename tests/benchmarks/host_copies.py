"""Host copies against one large contiguous torch copy of the same bytes, in one run."""

import time
from collections.abc import Callable

import numpy as np
import torch

from statepool.copies import CopyPlan
from statepool.host import HostEngine
from statepool.layout import ArenaLayout, BlockLayout, ConvLayout, Dtype, StateKind, StateSpec

TOTAL_BYTES = 256 * 2**20
REPEATS = 9
REST_SECONDS = 0.02
"""Pause before each measurement: the threads of a torch copy spin for a while after it."""
Row = tuple[str, float, str, str]
"""Name, value, unit, bar."""


def _layout(block_bytes: int) -> ArenaLayout:
    state = StateSpec("layers.0.temporal", 0, StateKind.TEMPORAL, Dtype.UINT8, (block_bytes,))
    return ArenaLayout(BlockLayout.of([state], ConvLayout.SD), 2 * TOTAL_BYTES // block_bytes)


def _seconds(step: Callable[[], object]) -> float:
    time.sleep(REST_SECONDS)
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def measure(block_bytes: int) -> tuple[float, float, float]:
    """Measures copies of scattered blocks in memory of this process; returns as `measure_in`."""
    layout = _layout(block_bytes)
    return measure_in(torch.ones(layout.nbytes, dtype=torch.uint8), layout)


def measure_in(arena: torch.Tensor, layout: ArenaLayout) -> tuple[float, float, float]:
    """Measures copies of scattered blocks.

    Returns:
        Bytes per second of the host engine, of torch's index assignment, and of one contiguous torch copy.
    """
    engine, block_bytes = HostEngine(arena.numpy(), layout), layout.block.image_bytes
    count = layout.block_count // 2
    order = np.random.default_rng(0).permutation(layout.block_count)
    src, dst = order[:count], order[count : 2 * count]
    plan = CopyPlan(src, dst, np.zeros(count, np.int64), src)
    blocks = arena.view(layout.block_count, block_bytes)
    src_index, dst_index = torch.from_numpy(src), torch.from_numpy(dst)
    half = count * block_bytes

    def by_index() -> None:
        blocks[dst_index] = blocks[src_index]

    steps = (lambda: engine.copy(plan), by_index, lambda: arena[half : 2 * half].copy_(arena[:half]))
    best = [float("inf")] * len(steps)
    for _ in range(REPEATS):  # interleaved, so that a slow moment of the machine hits all of them
        best = [min(known, _seconds(step)) for known, step in zip(best, steps, strict=True)]
    engine_rate, index_rate, copy_rate = (half / seconds for seconds in best)
    return engine_rate, index_rate, copy_rate


def rows() -> list[Row]:
    """Measures everything."""
    found: list[Row] = []
    for name, block_bytes, bar in (
        ("64 KiB", 2**16, ">= 0.8"),
        ("1 MiB", 2**20, ">= 0.9"),
        ("16 MiB", 2**24, ">= 0.9"),
    ):
        engine, index, contiguous = measure(block_bytes)
        found.append((f"host copy of {name} blocks / contiguous", engine / contiguous, "x", bar))
        found.append(("  torch index assignment / contiguous", index / contiguous, "x", ""))
        found.append(("  one contiguous torch copy", contiguous / 1e9, "GB/s", ""))
    return found


if __name__ == "__main__":
    for name, value, unit, bar in rows():
        print(f"{name:42} {value:8.2f} {unit:6} {bar}")
