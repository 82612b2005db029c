"""Guarantee: a layout gives every state its own aligned bytes, the same for every process that knows the layout."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from statepool.layout import (
    ALIGNMENT,
    MAX_ARENA_BYTES,
    ArenaLayout,
    Arrangement,
    BlockLayout,
    ConvLayout,
    Dtype,
    StateKind,
    StateSpec,
    TensorSpec,
    blocks_that_fit,
)

DIMENSION = st.integers(1, 40)
SHAPE = {
    StateKind.CONV: st.tuples(DIMENSION, DIMENSION),
    StateKind.TEMPORAL: st.lists(DIMENSION, min_size=1, max_size=3).map(tuple),
    StateKind.OPAQUE: st.lists(DIMENSION, min_size=1, max_size=2).map(tuple),
}


@st.composite
def block_layouts(draw: st.DrawFn) -> BlockLayout:
    """Draws a block of one to eight small states of any kind and type."""
    kinds = draw(st.lists(st.sampled_from(StateKind), min_size=1, max_size=8))
    states = [
        StateSpec(f"s{i}", i, kind, draw(st.sampled_from(Dtype)), draw(SHAPE[kind])) for i, kind in enumerate(kinds)
    ]
    return BlockLayout.of(states, draw(st.sampled_from(ConvLayout)))


arena_layouts = st.builds(ArenaLayout, block_layouts(), st.integers(2, 9), st.sampled_from(Arrangement))


def _view(arena: NDArray[np.uint8], tensor: TensorSpec) -> NDArray[np.uint8]:
    """Builds a tensor's view from nothing but its spec, with one more dimension for the bytes of an element."""
    itemsize = tensor.state.dtype.itemsize
    return as_strided(
        arena[tensor.arena_offset :],
        shape=(*tensor.view_shape, itemsize),
        strides=(*(stride * itemsize for stride in tensor.view_strides), 1),
    )


@given(block_layouts())
def test_an_image_keeps_kinds_in_order(block: BlockLayout) -> None:
    """Conv states come last; within both groups the given order stays."""
    order = [(state.kind is StateKind.CONV, state.layer) for state in block.states]

    assert order == sorted(order)


@given(block_layouts())
def test_states_of_an_image_are_aligned_and_apart(block: BlockLayout) -> None:
    """Each state starts aligned, right after the padding of the one before, and the image ends padded."""
    end = 0
    for state, offset in zip(block.states, block.image_offsets, strict=True):
        assert offset % ALIGNMENT == 0
        assert 0 <= offset - end < ALIGNMENT
        end = offset + state.nbytes

    assert block.image_bytes % ALIGNMENT == 0
    assert 0 <= block.image_bytes - end < ALIGNMENT


@given(arena_layouts)
def test_views_share_no_byte_and_stay_inside(arena: ArenaLayout) -> None:
    """Counting up the bytes of all views counts no byte of the arena twice, and each that is no padding once."""
    memory = np.zeros(arena.nbytes, np.uint8)

    for tensor in arena.tensors:
        _view(memory, tensor)[...] += 1

    assert memory.max() == 1
    assert memory.sum() == arena.block_count * sum(state.nbytes for state in arena.block.states)


@given(arena_layouts)
def test_every_tensor_starts_aligned(arena: ArenaLayout) -> None:
    """Each tensor's first byte lies at a multiple of the alignment, in block-major arenas in every block."""
    for tensor in arena.tensors:
        assert tensor.arena_offset % ALIGNMENT == 0
        assert tensor.block_stride % tensor.state.dtype.itemsize == 0
        assert arena.arrangement is Arrangement.LAYER_MAJOR or tensor.block_stride % ALIGNMENT == 0


@given(arena_layouts, st.data())
def test_a_view_addresses_the_documented_bytes(arena: ArenaLayout, data: st.DataObject) -> None:
    """Element [b, i…] is where the formula of the spec puts it, and its last element is the largest offset."""
    tensor = data.draw(st.sampled_from(arena.tensors))
    index = tuple(data.draw(st.integers(0, size - 1)) for size in tensor.view_shape)
    memory = np.zeros(arena.nbytes, np.uint8)

    _view(memory, tensor)[index] = 1

    inner = int(np.ravel_multi_index(index[1:], tensor.state.shape))
    start = tensor.arena_offset + index[0] * tensor.block_stride + inner * tensor.state.dtype.itemsize
    assert np.flatnonzero(memory).tolist() == list(range(start, start + tensor.state.dtype.itemsize))
    last = sum((size - 1) * stride for size, stride in zip(tensor.view_shape, tensor.view_strides, strict=True))
    assert tensor.max_element_offset == last


@given(block_layouts(), st.integers(2, 9))
def test_a_block_of_a_block_major_arena_is_its_image(block: BlockLayout, block_count: int) -> None:
    """Block b is the bytes from b images on, each state at its image offset."""
    arena = ArenaLayout(block, block_count)

    assert arena.nbytes == block_count * block.image_bytes
    assert [tensor.arena_offset for tensor in arena.tensors] == list(block.image_offsets)
    assert {tensor.block_stride for tensor in arena.tensors} == {block.image_bytes}


@given(block_layouts(), st.integers(2, 9))
def test_a_tensor_of_a_layer_major_arena_is_contiguous(block: BlockLayout, block_count: int) -> None:
    """Each tensor's blocks follow each other without a gap."""
    arena = ArenaLayout(block, block_count, Arrangement.LAYER_MAJOR)

    assert all(tensor.block_stride == tensor.state.nbytes for tensor in arena.tensors)
    assert [tensor.image_offset for tensor in arena.tensors] == list(block.image_offsets)


@given(block_layouts(), st.integers(0, 2**20), st.sampled_from(Arrangement))
def test_blocks_that_fit_is_exact(block: BlockLayout, memory_bytes: int, arrangement: Arrangement) -> None:
    """The count's arena fits the budget, and that of one block more does not."""
    count = blocks_that_fit(block, memory_bytes, arrangement)

    assert count < 2 or ArenaLayout(block, count, arrangement).nbytes <= memory_bytes
    assert ArenaLayout(block, max(2, count + 1), arrangement).nbytes > memory_bytes or count + 1 < 2


@given(block_layouts(), st.integers(2, 10**6), st.sampled_from(Arrangement))
def test_an_arena_fits_into_its_own_size(block: BlockLayout, block_count: int, arrangement: Arrangement) -> None:
    """A budget of exactly an arena's bytes holds that many blocks; a byte less does not."""
    nbytes = ArenaLayout(block, block_count, arrangement).nbytes

    assert blocks_that_fit(block, nbytes, arrangement) >= block_count
    assert blocks_that_fit(block, nbytes - 1, arrangement) < block_count


STATE = StateSpec("s", 0, StateKind.TEMPORAL, Dtype.FLOAT32, (2, 3))
BLOCK = BlockLayout.of([STATE], ConvLayout.SD)


@pytest.mark.parametrize("arrangement", Arrangement)
@pytest.mark.parametrize(("memory_bytes", "count"), [(-1, 0), (0, 0), (23, 0), (255, 0), (256, 1)])
def test_small_budgets(memory_bytes: int, count: int, arrangement: Arrangement) -> None:
    """A budget too small for one padded block holds none."""
    fits = blocks_that_fit(BLOCK, memory_bytes, arrangement)

    # Ten states of 24 bytes share the one padding of a layer-major tensor.
    assert fits == (10 if arrangement is Arrangement.LAYER_MAJOR and count else count)


@pytest.mark.parametrize("arrangement", Arrangement)
def test_absurd_budgets_stop_at_the_largest_arena(arrangement: Arrangement) -> None:
    """However much memory there is, what fits can be made."""
    arena = ArenaLayout(BLOCK, blocks_that_fit(BLOCK, 10**40, arrangement), arrangement)

    assert MAX_ARENA_BYTES - ALIGNMENT < arena.nbytes <= MAX_ARENA_BYTES


def test_the_fingerprint_is_stable() -> None:
    """The fingerprint is part of the protocol: it must not change between versions."""
    assert BLOCK.fingerprint == "4d7df16f1062f8cdc1aa303b1f7e240b7a22932051e2e4801affb694297f6ecf"


@given(block_layouts())
def test_equal_layouts_have_equal_fingerprints(block: BlockLayout) -> None:
    """A layout that was taken apart and rebuilt has the same fingerprint."""
    copy = BlockLayout(tuple(dataclasses.replace(state) for state in block.states), ConvLayout(str(block.conv_layout)))

    assert copy.fingerprint == block.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"name": "t"},
        {"layer": 1},
        {"kind": StateKind.OPAQUE},
        {"dtype": Dtype.INT8},
        {"shape": (3, 2)},
        {"shape": (6,)},
        {"shape": (2, 3, 1)},
    ],
    ids=str,
)
def test_the_fingerprint_tells_states_apart(change: dict[str, Any]) -> None:
    """Whatever changes in one state changes the fingerprint."""
    other = BlockLayout.of([dataclasses.replace(STATE, **change)], ConvLayout.SD)

    assert other.fingerprint != BLOCK.fingerprint


def test_the_fingerprint_tells_blocks_apart() -> None:
    """So do the conv layout, another state, and the order of states."""
    second = dataclasses.replace(STATE, name="t")
    layouts = [
        BLOCK,
        BlockLayout.of([STATE], ConvLayout.DS),
        BlockLayout.of([STATE, second], ConvLayout.SD),
        BlockLayout.of([second, STATE], ConvLayout.SD),
    ]

    assert len({layout.fingerprint for layout in layouts}) == len(layouts)


HUGE = dataclasses.replace(STATE, shape=(2**31, 2**31))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BlockLayout.of([], ConvLayout.SD), "at least one state"),
        (lambda: BlockLayout.of([STATE, STATE], ConvLayout.SD), "unique"),
        (lambda: BlockLayout.of([dataclasses.replace(STATE, shape=())], ConvLayout.SD), "positive"),
        (lambda: BlockLayout.of([dataclasses.replace(STATE, shape=(2, 0))], ConvLayout.SD), "positive"),
        (lambda: BlockLayout.of([dataclasses.replace(STATE, layer=-1)], ConvLayout.SD), "negative"),
        (
            lambda: BlockLayout.of([dataclasses.replace(STATE, kind=StateKind.CONV, shape=(2, 2, 2))], ConvLayout.SD),
            "two dimensions",
        ),
        (lambda: BlockLayout.of([HUGE], ConvLayout.SD), str(math.prod(HUGE.shape) * 4)),
        (lambda: ArenaLayout(BLOCK, 1), "at least 2 blocks"),
        (lambda: ArenaLayout(BLOCK, 2**60), str(2**60 * ALIGNMENT)),
        (lambda: ArenaLayout(BLOCK, 2**60, Arrangement.LAYER_MAJOR), str(2**60 * 24)),
    ],
)
def test_layouts_that_cannot_be_are_refused(make: Callable[[], object], message: str) -> None:
    """States without a size, double names, and sizes beyond 62 bits are refused with the numbers."""
    with pytest.raises(ValueError, match=message):
        make()
