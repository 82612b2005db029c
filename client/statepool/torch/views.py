"""Views of an arena: every state tensor ``[block_count, *shape]`` over the same bytes."""

import torch

from statepool.layout import ArenaLayout, Dtype, TensorSpec


def torch_dtype(dtype: Dtype) -> torch.dtype:
    """Finds the torch dtype; the names are torch's own."""
    found: torch.dtype = getattr(torch, dtype.value)
    return found


def state_views(arena: torch.Tensor, layout: ArenaLayout) -> dict[str, torch.Tensor]:
    """Builds the view of every state tensor, without a copy.

    Args:
        arena: The whole arena, uint8, ``[arena bytes]``, contiguous.
        layout: Its layout.

    Returns:
        State name to ``[block_count, *shape]``, in image order.

    Raises:
        ValueError: The tensor is not an arena of this layout.
    """
    if arena.dtype is not torch.uint8 or arena.dim() != 1 or not arena.is_contiguous() or len(arena) < layout.nbytes:
        raise ValueError(f"an arena is a contiguous uint8 tensor of {layout.nbytes} bytes or more, got {arena.shape}")
    return {spec.state.name: _view(arena, spec) for spec in layout.tensors}


def _view(arena: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
    dtype = torch_dtype(spec.state.dtype)
    end = (spec.max_element_offset + 1) * dtype.itemsize
    typed = arena[spec.arena_offset : spec.arena_offset + end].view(dtype)
    return typed.as_strided(spec.view_shape, spec.view_strides)
