"""Copy specs of single tensors, under the field's own names (vLLM's ``mamba_utils``)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from statepool.errors import BlockIndexOutOfRangeError, DsSpecNotContiguousError
from statepool.layout import ConvLayout
from statepool.shapes import ConvLayoutName, resolve_conv_layout


@dataclass(frozen=True, slots=True)
class MambaCopySpec:
    """One contiguous region to copy."""

    start_addr: int
    """Address of its first element, in this process."""
    num_elements: int
    """Its elements, of the state's dtype."""


MambaStateCopyFunc: TypeAlias = Callable[[torch.Tensor, Sequence[int], int, int], MambaCopySpec]
"""Takes a state tensor ``[num_blocks, *shape]``, a request's block ids, its running index and its accepted tokens."""


def get_conv_copy_spec(
    state: torch.Tensor,
    block_ids: Sequence[int],
    cur_block_idx: int,
    num_accepted_tokens: int,
    *,
    conv_layout: ConvLayoutName | None = None,
) -> MambaCopySpec:
    """Finds what a conv state leaves to the next step: its rows from the last accepted token on.

    Args:
        state: ``[num_blocks, length, dim]`` in SD, ``[num_blocks, dim, length]`` in DS.
        block_ids: The request's blocks.
        cur_block_idx: Index of the running block in them.
        num_accepted_tokens: From 1 to the length.
        conv_layout: SD, DS, or None for `statepool.shapes.get_conv_state_layout`.

    Raises:
        DsSpecNotContiguousError: More than one accepted token in DS, where the rest is not one region.
        BlockIndexOutOfRangeError: An index past the end of the list, the tensor or the state.
        ValueError: The layout is neither SD nor DS.
    """
    layout = resolve_conv_layout(conv_layout)
    if layout is ConvLayout.DS and num_accepted_tokens > 1:
        raise DsSpecNotContiguousError(
            f"{num_accepted_tokens} accepted tokens are not one region in DS", field="num_accepted_tokens"
        )
    length = state.shape[1] if layout is ConvLayout.SD else state.shape[2]
    if not 1 <= num_accepted_tokens <= length:
        raise BlockIndexOutOfRangeError(
            f"num_accepted_tokens {num_accepted_tokens} is not 1 to {length}", field="num_accepted_tokens"
        )
    block = _block(state, block_ids, cur_block_idx, "cur_block_idx")
    region = block[num_accepted_tokens - 1 :]
    return MambaCopySpec(region.data_ptr(), region.numel())


def get_temporal_copy_spec(
    state: torch.Tensor, block_ids: Sequence[int], cur_block_idx: int, num_accepted_tokens: int
) -> MambaCopySpec:
    """Finds the temporal state after the last accepted token: a whole block of its own.

    Args:
        state: ``[num_blocks, *shape]``.
        block_ids: The request's blocks.
        cur_block_idx: Index of the running block in them.
        num_accepted_tokens: From 1.

    Raises:
        BlockIndexOutOfRangeError: An index past the end of the list or the tensor, or no accepted token.
    """
    if num_accepted_tokens < 1:
        raise BlockIndexOutOfRangeError(
            f"num_accepted_tokens {num_accepted_tokens} is not 1 or more", field="num_accepted_tokens"
        )
    block = _block(state, block_ids, cur_block_idx + num_accepted_tokens - 1, "num_accepted_tokens")
    return MambaCopySpec(block.data_ptr(), block.numel())


def _block(state: torch.Tensor, block_ids: Sequence[int], index: int, field: str) -> torch.Tensor:
    if not 0 <= index < len(block_ids):
        raise BlockIndexOutOfRangeError(f"{field}: index {index} in {len(block_ids)} block ids", field=field)
    block_id = block_ids[index]
    if not 0 <= block_id < state.shape[0]:
        raise BlockIndexOutOfRangeError(f"block_ids: {block_id} of {state.shape[0]} blocks", field="block_ids")
    return state[block_id]
