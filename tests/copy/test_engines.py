"""Guarantee: every copy engine does exactly what a copy element by element does, and touches nothing else."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings

from statepool.copies import CopyPlan, max_token_bias
from statepool.layout import ArenaLayout, Arrangement, BlockLayout, ConvLayout, Dtype, StateKind, StateSpec
from statepool.torch import ENGINES
from support.arenas import arena_of, copied, layout_of, padding, pattern
from support.plans import plan_of, plans

ENGINE_NAMES = sorted(ENGINES)
LAYOUTS = [(conv, arrangement) for conv in ConvLayout for arrangement in Arrangement]


def run(engine: str, layout: ArenaLayout, plan: CopyPlan) -> tuple["np.ndarray", "np.ndarray"]:
    """Runs a plan; returns the arena after it, and what it should be, padding left out."""
    content = pattern(layout)
    arena = arena_of(content)
    ENGINES[engine](arena, layout).copy(plan)
    states = ~padding(layout)
    return arena.numpy() * states, copied(content, layout, plan) * states


@pytest.mark.parametrize("engine", ENGINE_NAMES)
@pytest.mark.parametrize(("conv_layout", "arrangement"), LAYOUTS)
@given(plan=plans())
@settings(max_examples=settings().max_examples // 3, deadline=None)
def test_any_plan(engine: str, conv_layout: ConvLayout, arrangement: Arrangement, plan: CopyPlan) -> None:
    """A plan of any shape leaves every state byte of every block, the null block included, as the oracle says."""
    layout = layout_of(conv_layout, arrangement)

    after, expected = run(engine, layout, plan)

    assert np.array_equal(after, expected)


@pytest.mark.parametrize("engine", ENGINE_NAMES)
@pytest.mark.parametrize("dtype", list(Dtype))
@pytest.mark.parametrize(("conv_layout", "arrangement"), LAYOUTS)
def test_every_dtype(engine: str, dtype: Dtype, conv_layout: ConvLayout, arrangement: Arrangement) -> None:
    """Bytes are moved as they are, whatever their type: also those that are no number of it."""
    layout = layout_of(conv_layout, arrangement, dtype, dtype)
    plan = plan_of([(1, 2, 0, 1), (3, 4, 1, 5), (6, 6, 2, 6)])

    after, expected = run(engine, layout, plan)

    assert np.array_equal(after, expected)


@pytest.mark.parametrize("engine", ENGINE_NAMES)
@pytest.mark.parametrize(("conv_layout", "arrangement"), LAYOUTS)
def test_zeroing(engine: str, conv_layout: ConvLayout, arrangement: Arrangement) -> None:
    """Zeroing clears every state of the blocks and no state of another."""
    layout = layout_of(conv_layout, arrangement)
    content = pattern(layout)
    arena = arena_of(content)

    ENGINES[engine](arena, layout).zero(np.array([2, 5]))

    every = plan_of([])
    wiped = copied(content, layout, every)
    for spec in layout.tensors:
        for block in (2, 5):
            start = spec.arena_offset + block * spec.block_stride
            wiped[start : start + spec.state.nbytes] = 0
    states = ~padding(layout)
    assert np.array_equal(arena.numpy() * states, wiped * states)


@pytest.mark.parametrize("engine", ENGINE_NAMES)
@pytest.mark.parametrize("arrangement", list(Arrangement))
def test_padding_of_other_blocks(engine: str, arrangement: Arrangement) -> None:
    """Padding outside the destination blocks is not touched either."""
    layout = layout_of(ConvLayout.SD, arrangement)
    content = pattern(layout)
    arena = arena_of(content)

    ENGINES[engine](arena, layout).copy(plan_of([(1, 2, 0, 1), (3, 4, 1, 3)]))

    changed = np.flatnonzero(arena.numpy() != content)
    inside = np.zeros(layout.nbytes, np.bool_)
    for spec in layout.tensors:
        for block in (2, 4):
            start = spec.arena_offset + block * spec.block_stride
            whole_image = arrangement is Arrangement.BLOCK_MAJOR and spec is layout.tensors[0]
            inside[start : start + (layout.block.image_bytes if whole_image else spec.state.nbytes)] = True
    assert inside[changed].all()


@pytest.mark.parametrize("engine", ENGINE_NAMES)
def test_large_blocks_in_pieces(engine: str) -> None:
    """Regions that are cut for several threads or programs arrive whole."""
    unit = 2**16 if engine == "triton" else 2**20  # its tiles are small, and its interpreter is slow
    row = 5 * unit
    big = StateSpec("layers.0.temporal", 0, StateKind.TEMPORAL, Dtype.UINT8, (33 * unit + 77,))
    conv = StateSpec("layers.0.conv.0", 0, StateKind.CONV, Dtype.UINT8, (4, row))
    layout = ArenaLayout(BlockLayout.of([big, conv], ConvLayout.SD), 4)
    content = pattern(layout)
    arena = arena_of(content)

    ENGINES[engine](arena, layout).copy(plan_of([(1, 2, 0, 1), (3, 3, 1, 3)]))

    blocks, before = arena.numpy().reshape(4, -1), content.reshape(4, -1)
    assert np.array_equal(blocks[2][: big.nbytes], before[1][: big.nbytes])
    start = layout.block.image_offsets[1]
    assert np.array_equal(blocks[3][start : start + 3 * row], before[3][start + row : start + 4 * row])
    assert np.array_equal(blocks[3][start + 3 * row : start + 4 * row], before[3][start + 3 * row : start + 4 * row])
    assert np.array_equal(blocks[:2], before[:2])


@pytest.mark.parametrize("engine", ENGINE_NAMES)
def test_disjoint_copies_at_the_same_time(engine: str) -> None:
    """Copies of different blocks may run on several threads at once."""
    layout = layout_of(ConvLayout.SD, Arrangement.LAYER_MAJOR)
    content = pattern(layout)
    arena = arena_of(content)
    runner = ENGINES[engine](arena, layout)
    first, second = plan_of([(1, 2, 1, 1)]), plan_of([(3, 4, 0, 5)])

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(runner.copy, [first, second] * 20))

    expected = copied(copied(content, layout, first), layout, second)
    states = ~padding(layout)
    assert np.array_equal(arena.numpy() * states, expected * states)


def test_largest_bias() -> None:
    """The largest bias is one less than the shortest conv state, so that a row is always left."""
    assert max_token_bias(layout_of(ConvLayout.DS, Arrangement.BLOCK_MAJOR).block) == 2
