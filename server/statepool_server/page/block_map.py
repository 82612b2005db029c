"""Blocks by state as a string of letters, one per cell of the page's map."""

import numpy as np

from statepool_server.blocks import BlockState, BlockTable

LETTERS = {
    BlockState.FREE: "f",
    BlockState.OWNED: "o",
    BlockState.SHARED: "s",
    BlockState.EVICTABLE: "e",
    BlockState.RELEASING: "r",
    BlockState.QUARANTINED: "q",
}
"""Letter of each state."""

MAX_CELLS = 4096
"""A cell stands for one block, for more only where there are more blocks than this."""

_OF_STATE = np.frombuffer(b"?" + "".join(LETTERS[state] for state in BlockState).encode(), np.uint8)


def block_map(blocks: BlockTable) -> tuple[int, str]:
    """Draws the map; takes time in proportion to the blocks.

    Returns:
        Blocks per cell, and a letter per cell from block 1 on: the state of most of its blocks, but quarantine wherever
        there is any.
    """
    states = blocks.states(np.arange(1, blocks.block_count))
    per_cell = -(-len(states) // MAX_CELLS)
    if per_cell > 1:
        starts = np.arange(0, len(states), per_cell)
        counts = np.stack([np.add.reduceat(states == state, starts, dtype=np.int64) for state in BlockState])
        quarantined = counts[BlockState.QUARANTINED - 1] > 0
        states = np.where(quarantined, BlockState.QUARANTINED, counts.argmax(axis=0) + 1)
    return per_cell, _OF_STATE[states].tobytes().decode()
