"""Guarantee: the load test's oracle agrees with a copy made element by element, so its verdicts can be trusted."""

import numpy as np
import pytest

from statepool.copies import CopyPlan
from statepool.layout import Arrangement, ConvLayout
from statepool.loadtest.images import Oracle
from support.arenas import copied, layout_of


@pytest.mark.parametrize("conv_layout", list(ConvLayout))
@pytest.mark.parametrize("bias", [0, 1, 2])
def test_copies(conv_layout: ConvLayout, bias: int) -> None:
    """A copied image is the destination's image after a copy in an arena."""
    layout = layout_of(conv_layout, Arrangement.BLOCK_MAJOR)
    oracle = Oracle(layout.block, seed=3)
    src, dst = oracle.pattern(1), oracle.pattern(2)
    arena = np.zeros((layout.block_count, layout.block.image_bytes), np.uint8)
    arena[1], arena[2] = src, dst

    expected = oracle.copied(src, dst, bias)

    after = copied(arena.reshape(-1), layout, CopyPlan(*(np.array([value]) for value in (1, 2, bias, 1))))
    assert np.array_equal(after.reshape(arena.shape)[2], expected)


def test_patterns_differ_and_leave_padding_alone() -> None:
    """Two tags give two images, equal only where there is padding."""
    layout = layout_of(ConvLayout.SD, Arrangement.BLOCK_MAJOR).block
    oracle = Oracle(layout, seed=3)
    used = np.zeros(layout.image_bytes, np.bool_)
    for state, offset in zip(layout.states, layout.image_offsets, strict=True):
        used[offset : offset + state.nbytes] = True

    first, second = oracle.pattern(1), oracle.pattern(2)

    assert not first[~used].any()
    assert (first != second)[used].mean() > 0.9
