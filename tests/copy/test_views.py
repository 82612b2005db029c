"""Guarantee: torch views of an arena are the tensors that its layout specifies."""

import numpy as np
import pytest
import torch

from statepool.layout import Arrangement, ConvLayout, Dtype
from statepool.torch import state_views, torch_dtype
from support.arenas import arena_of, layout_of, pattern


@pytest.mark.parametrize("arrangement", list(Arrangement))
@pytest.mark.parametrize("dtype", list(Dtype))
def test_views_show_the_bytes_of_the_layout(arrangement: Arrangement, dtype: Dtype) -> None:
    """Block b of a view is the run of bytes that the tensor's spec places there."""
    layout = layout_of(ConvLayout.SD, arrangement, dtype, dtype)
    content = pattern(layout)

    views = state_views(arena_of(content), layout)

    assert list(views) == [state.name for state in layout.block.states]
    for spec in layout.tensors:
        view = views[spec.state.name]
        assert view.shape == spec.view_shape
        assert view.dtype is torch_dtype(spec.state.dtype)
        for block in range(layout.block_count):
            start = spec.arena_offset + block * spec.block_stride
            shown = view[block].contiguous().view(torch.uint8).numpy().reshape(-1)
            assert np.array_equal(shown, content[start : start + spec.state.nbytes])


def test_views_share_the_arena() -> None:
    """Writing through a view writes the arena."""
    layout = layout_of(ConvLayout.SD, Arrangement.BLOCK_MAJOR)
    arena = arena_of(np.zeros(layout.nbytes, np.uint8))

    state_views(arena, layout)["layers.1.opaque"][3, 5] = 9

    assert arena.nonzero().numel() == 1


@pytest.mark.parametrize("arena", [torch.zeros(10, dtype=torch.uint8), torch.zeros(10**6)])
def test_other_tensors_are_refused(arena: torch.Tensor) -> None:
    """A tensor that is too small, or not of bytes, is no arena."""
    with pytest.raises(ValueError, match="arena"):
        state_views(arena, layout_of(ConvLayout.SD, Arrangement.BLOCK_MAJOR))
