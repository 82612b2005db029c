"""Copies of 64 blocks in one launch, against a device-to-device torch copy of the same bytes, in one run."""

import os
from collections.abc import Callable

import numpy as np
import torch

from statepool.copies import CopyPlan
from statepool.layout import ArenaLayout, Arrangement, BlockLayout, ConvLayout, Dtype, StateKind, StateSpec
from statepool_server.arena_cuda import open_cuda_arena

os.environ["TRITON_INTERPRET"] = "0"

from statepool.torch.triton_engine import TritonEngine  # reads the setting

COPIES = 64
SETS = 4
"""Sets of blocks that are copied in turn, so that the smaller ones do not stay in the device's cache."""
ROUNDS = 9
REPEATS = 20
LEAD_BYTES = 2**30
"""A copy before the clock starts keeps the device busy until the host has launched everything that is measured."""
Row = tuple[str, float, str, str]
"""Name, value, unit, bar."""


def _single(block_bytes: int) -> BlockLayout:
    """Makes blocks of one state."""
    state = StateSpec("layers.0.temporal", 0, StateKind.TEMPORAL, Dtype.UINT8, (block_bytes,))
    return BlockLayout.of([state], ConvLayout.SD)


def _layers(layers: int) -> BlockLayout:
    """Makes blocks of a conv state of 24 KiB and a temporal state of 512 KiB per layer."""
    states = []
    for layer in range(layers):
        states += [
            StateSpec(f"layers.{layer}.conv.0", layer, StateKind.CONV, Dtype.BFLOAT16, (3, 4096)),
            StateSpec(f"layers.{layer}.temporal", layer, StateKind.TEMPORAL, Dtype.FLOAT32, (16, 64, 128)),
        ]
    return BlockLayout.of(states, ConvLayout.SD)


def _seconds(step: Callable[[int], object], lead: torch.Tensor) -> float:
    """Times repeats of a step on the device, the gaps between them included."""
    half = len(lead) // 2
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    for _ in range(8):
        lead[half:].copy_(lead[:half])
    begin.record()
    for repeat in range(REPEATS):
        step(repeat % SETS)
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / REPEATS


def measure(block: BlockLayout, arrangement: Arrangement) -> tuple[float, float]:
    """Measures copies between scattered blocks of an arena as a server has it, for other processes to map.

    Returns:
        Bytes copied per second by the engine and by one contiguous torch copy.
    """
    layout = ArenaLayout(block, 2 * COPIES * SETS, arrangement)
    memory = open_cuda_arena("cuda:0", layout.nbytes)
    arena = memory.tensor
    arena.random_(256)
    lead = torch.empty(LEAD_BYTES, dtype=torch.uint8, device="cuda")
    engine = TritonEngine(arena, layout)
    order = np.random.default_rng(0).permutation(layout.block_count).reshape(2, SETS, COPIES)
    plans = [CopyPlan(src, dst, np.zeros(COPIES, np.int64), src) for src, dst in zip(*order, strict=True)]
    size = COPIES * sum(state.nbytes for state in block.states)
    half = layout.nbytes // 2

    def contiguous(index: int) -> None:
        start = index * size
        arena[half + start : half + start + size].copy_(arena[start : start + size])

    steps = (lambda index: engine.enqueue(plans[index]), contiguous)
    best = [float("inf")] * len(steps)
    for _ in range(ROUNDS):
        best = [min(known, _seconds(step, lead)) for known, step in zip(best, steps, strict=True)]
    memory.close()
    engine_rate, copy_rate = (size / seconds for seconds in best)
    return engine_rate, copy_rate


def rows() -> list[Row]:
    """Measures everything; nothing without a device."""
    if not torch.cuda.is_available():
        return []
    found: list[Row] = []
    for name, block, arrangement, bar in (
        ("64 KiB", _single(2**16), Arrangement.BLOCK_MAJOR, ""),
        ("1 MiB", _single(2**20), Arrangement.BLOCK_MAJOR, ">= 0.9"),
        ("16 MiB", _single(2**24), Arrangement.BLOCK_MAJOR, ">= 0.9"),
        ("24-layer", _layers(24), Arrangement.BLOCK_MAJOR, ">= 0.9"),
        ("24-layer, layer-major", _layers(24), Arrangement.LAYER_MAJOR, ">= 0.9"),
    ):
        engine, contiguous = measure(block, arrangement)
        found.append((f"64 copies of {name} blocks / contiguous", engine / contiguous, "x", bar))
        found.append(("  one contiguous torch copy", contiguous / 1e9, "GB/s", ""))
    return found


if __name__ == "__main__":
    if not torch.cuda.is_available():
        print("skipped: no CUDA device")
    for name, value, unit, bar in rows():
        print(f"{name:52} {value:8.2f} {unit:6} {bar}")
