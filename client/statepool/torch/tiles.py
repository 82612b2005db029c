"""Tiles of a block: its states cut into pieces that one program of a kernel copies or zeroes."""

import numpy as np
from numpy.typing import NDArray

from statepool.layout import ArenaLayout, ConvLayout, StateKind, TensorSpec


def tile_table(layout: ArenaLayout, tile_bytes: int) -> NDArray[np.int64]:
    """Cuts every state of a block into tiles, from its front to its back; conv states come last.

    Returns:
        ``[tiles, 7]``, the columns:

        0. bytes from the start of the arena to the state in block 0;
        1. bytes from one block to the next;
        2. bytes of the state;
        3. bytes from the start of the state to the tile;
        4. bytes that a bias of one token shifts the state by: 0 but for conv states;
        5. bytes of a row of the state, where each row is shifted for itself (DS), else 0;
        6. row of ``[src, dst, bias, temporal src]`` that names the block to copy from.
    """
    tensors = sorted(layout.tensors, key=lambda spec: spec.state.kind is StateKind.CONV)
    states = np.array([_columns(spec, layout.block.conv_layout) for spec in tensors], np.int64)
    counts = -(-states[:, 2] // tile_bytes)
    table = np.repeat(states, counts, axis=0)
    first_tiles = np.repeat(np.cumsum(counts) - counts, counts)
    table[:, 3] = (np.arange(len(table)) - first_tiles) * tile_bytes
    return table


def _columns(spec: TensorSpec, conv_layout: ConvLayout) -> tuple[int, ...]:
    state = spec.state
    token_bytes = row_bytes = 0
    if state.kind is StateKind.CONV:
        inner = state.shape[1] * state.dtype.itemsize
        token_bytes, row_bytes = (inner, 0) if conv_layout is ConvLayout.SD else (state.dtype.itemsize, inner)
    source = 3 if state.kind is StateKind.TEMPORAL else 0
    return spec.arena_offset, spec.block_stride, state.nbytes, 0, token_bytes, row_bytes, source
