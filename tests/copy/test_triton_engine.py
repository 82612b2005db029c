"""Guarantee: the triton engine does the same however its work is cut, in whatever order its programs run, wherever."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from triton.runtime.interpreter import interpreter_builder

from statepool.copies import CopyPlan
from statepool.layout import ArenaLayout, Arrangement, BlockLayout, ConvLayout, Dtype, StateKind, StateSpec
from statepool.torch.tiles import tile_table
from statepool.torch.triton_engine import TritonEngine
from support.arenas import arena_of, copied, layout_of, padding, pattern
from support.plans import plan_of, plans

LAYOUTS = [(conv, arrangement) for conv in ConvLayout for arrangement in Arrangement]
TILE_BYTES = 32
"""Cuts the states of the small layout into up to four tiles."""


@cache
def shuffled(programs: int) -> NDArray[np.int64]:
    """Makes an order of the programs of a launch that is not the natural one."""
    return np.random.default_rng(programs).permutation(programs)


@contextmanager
def programs_in_any_order() -> Iterator[None]:
    """Makes the interpreter run the programs of a launch in another order; a device keeps to none."""
    with pytest.MonkeyPatch.context() as patch:
        place = interpreter_builder.set_grid_idx
        patch.setattr(
            interpreter_builder,
            "set_grid_idx",
            lambda x, y, z: place(int(shuffled(interpreter_builder.grid_dim[0])[x]), y, z),
        )
        yield


@pytest.mark.parametrize(("conv_layout", "arrangement"), LAYOUTS)
@given(plan=plans(), conv=st.sampled_from([Dtype.BFLOAT16, Dtype.FLOAT32]), tiles_at_a_time=st.integers(1, 8))
@settings(max_examples=15, deadline=None)
def test_tiles_groups_and_order(
    conv_layout: ConvLayout, arrangement: Arrangement, plan: CopyPlan, conv: Dtype, tiles_at_a_time: int
) -> None:
    """States cut into tiles, staged a few at a time, by programs in any order, end as the oracle says."""
    layout = layout_of(conv_layout, arrangement, conv)
    content = pattern(layout)
    arena = arena_of(content)
    scratch_bytes = tiles_at_a_time * TILE_BYTES * max(1, len(plan))
    engine = TritonEngine(arena, layout, tile_bytes=TILE_BYTES, scratch_bytes=scratch_bytes)

    with programs_in_any_order():
        engine.copy(plan)

    states = ~padding(layout)
    assert np.array_equal(arena.numpy() * states, copied(content, layout, plan) * states)


@pytest.mark.parametrize("size", [1, 15, 16, 17, 31, 33, 48, 100])
@pytest.mark.parametrize("conv_layout", list(ConvLayout))
def test_sizes_around_vectors(conv_layout: ConvLayout, size: int) -> None:
    """States of any size and alignment are copied, shifted and zeroed to the byte."""
    states = [
        StateSpec("layers.0.temporal", 0, StateKind.TEMPORAL, Dtype.UINT8, (size,)),
        StateSpec("layers.0.conv.0", 0, StateKind.CONV, Dtype.UINT8, (3, size) if conv_layout == "SD" else (size, 3)),
    ]
    layout = ArenaLayout(BlockLayout.of(states, conv_layout), 6, Arrangement.LAYER_MAJOR)
    content = pattern(layout)
    arena = arena_of(content)
    engine = TritonEngine(arena, layout, tile_bytes=TILE_BYTES)
    plan = plan_of([(1, 2, 0, 1), (4, 5, 1, 4), (3, 3, 2, 4)])

    engine.copy(plan)
    engine.zero(np.array([1]))

    expected = copied(content, layout, plan)
    for spec in layout.tensors:
        start = spec.arena_offset + spec.block_stride
        expected[start : start + spec.state.nbytes] = 0
    assert np.array_equal(arena.numpy(), expected)


def test_far_into_a_large_arena() -> None:
    """Offsets beyond 32 bits are right, of elements and of bytes."""
    state = StateSpec("layers.0.temporal", 0, StateKind.TEMPORAL, Dtype.UINT8, (100,))
    conv = StateSpec("layers.0.conv.0", 0, StateKind.CONV, Dtype.UINT8, (2, 50))
    block_count = 2**32 // 512 + 2
    layout = ArenaLayout(BlockLayout.of([state, conv], ConvLayout.SD), block_count)
    arena = torch.empty(layout.nbytes, dtype=torch.uint8)  # only pages that are touched become memory
    blocks = arena.view(block_count, 512)
    last = block_count - 1
    for block_id, value in ((1, 11), (last, 22), (last - 1, 33)):
        blocks[block_id] = value
    engine = TritonEngine(arena, layout)

    engine.copy(plan_of([(last, 1, 1, last), (1, last, 0, 1)]))
    engine.zero(np.array([last - 1]))

    assert set(blocks[1, :100].tolist()) == set(blocks[1, 256:306].tolist()) == {22}
    assert set(blocks[last, :100].tolist()) == set(blocks[last, 256:356].tolist()) == {11}
    assert not blocks[last - 1, :100].any()


def test_tiles_cover_every_state_once() -> None:
    """The tiles of a state follow each other from its front to its back, and conv states come last."""
    layout = layout_of(ConvLayout.SD, Arrangement.LAYER_MAJOR)

    table = tile_table(layout, TILE_BYTES)

    starts = {spec.arena_offset: list(range(0, spec.state.nbytes, TILE_BYTES)) for spec in layout.tensors}
    assert {offset: table[table[:, 0] == offset, 3].tolist() for offset in table[:, 0].tolist()} == starts
    conv = [spec.arena_offset for spec in layout.tensors if spec.state.kind is StateKind.CONV]
    is_conv = np.isin(table[:, 0], conv)
    assert not is_conv[: -is_conv.sum()].any()


def run(program: str) -> "subprocess.CompletedProcess[str]":
    """Runs a program in a process that compiles kernels."""
    env = os.environ | {"TRITON_INTERPRET": "0"}
    return subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)


BUILD = """
import sys, torch, statepool.torch
from statepool.layout import ArenaLayout, BlockLayout, ConvLayout, Dtype, StateKind, StateSpec
state = StateSpec("s", 0, StateKind.TEMPORAL, Dtype.UINT8, (4,))
layout = ArenaLayout(BlockLayout.of([state], ConvLayout.SD), 2)
assert "triton" not in sys.modules
{first}
statepool.torch.ENGINES["triton"](torch.zeros(layout.nbytes, dtype=torch.uint8), layout)
"""


def test_host_memory_is_refused() -> None:
    """Compiled kernels would crash on host memory: the engine says so."""
    done = run(BUILD.format(first=""))

    assert "ValueError: the triton engine copies device memory, the arena is on cpu" in done.stderr


def test_missing_triton_is_told_with_the_way_out() -> None:
    """Triton is imported with the first engine that needs it; where it is missing, the error names the extra."""
    done = run(BUILD.format(first="sys.modules['triton'] = None"))

    assert "RuntimeError: the triton engine needs triton: pip install 'statepool[triton]'" in done.stderr
