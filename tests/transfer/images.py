"""Random states in blocks, and what becomes of them on their way."""

import numpy as np
from numpy.typing import NDArray

from statepool import BlockRefs, Pool, Session
from statepool.layout import BlockLayout, StateKind

RANKS = range(2)
Images = NDArray[np.uint8]
"""Bytes of block images, ``[ranks, n, image bytes]``."""


def fill(session: Session, blocks: BlockRefs, pool: Pool, seed: int = 0) -> Images:
    """Writes random states into blocks, on every rank, and reads what stands there then."""
    random = np.random.default_rng(seed)
    for rank in RANKS:
        session.write_blocks(
            blocks, random.integers(0, 256, (len(blocks), pool.block_bytes), np.uint8), rank_index=rank
        )
    return images(session, blocks)


def images(session: Session, blocks: BlockRefs) -> Images:
    """Reads blocks, on every rank."""
    return np.stack([session.read_images(blocks, rank_index=rank) for rank in RANKS])


def shifted(layout: BlockLayout, conv: Images, temporal: Images, rows: int) -> Images:
    """Puts SD images together as a copy with a bias would, ``[..., image bytes]``."""
    made = np.zeros_like(conv)
    for state, start in zip(layout.states, layout.image_offsets, strict=True):
        end = start + state.nbytes
        if state.kind is StateKind.TEMPORAL:
            made[..., start:end] = temporal[..., start:end]
        else:
            left_out = rows * (state.nbytes // state.shape[0])
            made[..., start : end - left_out] = conv[..., start + left_out : end]
    return made
