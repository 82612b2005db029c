"""Arenas filled with patterns, and a copy written out element by element: what every engine must agree with."""

from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray

from statepool.copies import CopyPlan
from statepool.layout import ArenaLayout, Arrangement, BlockLayout, ConvLayout, Dtype, StateKind, StateSpec

BLOCK_COUNT = 7
Bytes = NDArray[np.uint8]


def layout_of(
    conv_layout: ConvLayout, arrangement: Arrangement, conv: Dtype = Dtype.BFLOAT16, temporal: Dtype = Dtype.FLOAT32
) -> ArenaLayout:
    """Lays out two layers with a conv state of 4 tokens, an odd one of 3, a temporal and an opaque state."""
    states = []
    for layer, (tokens, dim) in enumerate(((4, 6), (3, 10))):
        shape = (tokens, dim) if conv_layout is ConvLayout.SD else (dim, tokens)
        states += [
            StateSpec(f"layers.{layer}.conv.0", layer, StateKind.CONV, conv, shape),
            StateSpec(f"layers.{layer}.temporal", layer, StateKind.TEMPORAL, temporal, (2, 3, 5)),
        ]
    states.append(StateSpec("layers.1.opaque", 1, StateKind.OPAQUE, Dtype.UINT8, (37,)))
    return ArenaLayout(BlockLayout.of(states, conv_layout), BLOCK_COUNT, arrangement)


def pattern(layout: ArenaLayout) -> Bytes:
    """Makes arena bytes that differ from place to place, padding and the null block included."""
    return np.random.default_rng(7).integers(1, 256, layout.nbytes, np.uint8)


def arena_of(content: Bytes) -> torch.Tensor:
    """Makes an arena of its own with the given bytes."""
    return torch.from_numpy(content.copy())


def copied(content: Bytes, layout: ArenaLayout, plan: CopyPlan) -> Bytes:
    """Copies one element after the other, every source taken from the bytes as they were."""
    result = content.copy()
    columns = (plan.src_blocks, plan.dst_blocks, plan.token_biases, plan.temporal_src_blocks)
    for spec, (src, dst, bias, temporal_src) in product(
        layout.tensors, list(zip(*(column.tolist() for column in columns), strict=True))
    ):
        source = temporal_src if spec.state.kind is StateKind.TEMPORAL else src
        item = spec.state.dtype.itemsize
        for index in np.ndindex(*spec.state.shape):
            taken = list(index)
            if spec.state.kind is StateKind.CONV:
                token = 0 if layout.block.conv_layout is ConvLayout.SD else 1
                taken[token] += bias
                if taken[token] >= spec.state.shape[token]:
                    continue
            to = _offset(index, spec.state.shape) * item + spec.arena_offset + dst * spec.block_stride
            at = _offset(tuple(taken), spec.state.shape) * item + spec.arena_offset + source * spec.block_stride
            result[to : to + item] = content[at : at + item]
    return result


def padding(layout: ArenaLayout) -> NDArray[np.bool_]:
    """Marks the bytes of an arena that belong to no state."""
    mask = np.ones(layout.nbytes, np.bool_)
    for spec, block in product(layout.tensors, range(layout.block_count)):
        start = spec.arena_offset + block * spec.block_stride
        mask[start : start + spec.state.nbytes] = False
    return mask


def _offset(index: tuple[int, ...], shape: tuple[int, ...]) -> int:
    return int(np.ravel_multi_index(index, shape))
