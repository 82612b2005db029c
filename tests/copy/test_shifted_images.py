"""Guarantee: any piece of the image that a copy with a bias would leave is read without the copy, and no more of it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statepool.copies import CopyPlan
from statepool.host import Bytes, read_image, read_shifted_image
from statepool.layout import ArenaLayout, Arrangement, ConvLayout, StateKind
from support.arenas import copied, layout_of, padding, pattern

CONV, TEMPORAL, BLANK = 1, 2, 3


def arena_with_a_blank_block(layout: ArenaLayout) -> Bytes:
    """Makes an arena in which one block, and all padding, is zero."""
    arena = pattern(layout)
    arena[padding(layout)] = 0
    for spec in layout.tensors:
        start = spec.arena_offset + BLANK * spec.block_stride
        arena[start : start + spec.state.nbytes] = 0
    return arena


@pytest.mark.parametrize("arrangement", list(Arrangement))
@pytest.mark.parametrize("conv_layout", list(ConvLayout))
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_piece(arrangement: Arrangement, conv_layout: ConvLayout, data: st.DataObject) -> None:
    """It is what the copy would leave there; of states that are not shifted, nothing beside the piece is read."""
    layout = layout_of(conv_layout, arrangement)
    arena, bias = arena_with_a_blank_block(layout), data.draw(st.integers(0, 2))
    offset = data.draw(st.integers(0, layout.block.image_bytes))
    length = data.draw(st.integers(0, layout.block.image_bytes - offset))
    plan = CopyPlan(*(np.array([value]) for value in (CONV, BLANK, bias, TEMPORAL)))
    expected, sizes = copied(arena, layout, plan), list[int]()

    def read(start: int, nbytes: int) -> Bytes:
        sizes.append(nbytes)
        return arena[start : start + nbytes]

    image = read_shifted_image(read, layout, CONV, TEMPORAL, bias, offset, length)

    assert image == read_image(lambda start, size: expected[start : start + size], layout, BLANK, offset, length)
    shifted = sum(state.nbytes for state in layout.block.states if bias and state.kind is StateKind.CONV)
    assert sum(sizes) <= length + shifted
