"""Guarantee: the map of blocks shows every block's state, and no quarantine is lost where a cell stands for many."""

from collections import Counter

import numpy as np
import pytest

from statepool_server.blocks import BlockState
from statepool_server.page import block_map as module
from statepool_server.page.block_map import LETTERS, block_map
from statepool_server.pool import Pool, PoolConfig

BLOCKS = 60


@pytest.fixture
def pool() -> Pool:
    """Gives a pool with blocks in every state but releasing."""
    pool = Pool(PoolConfig(block_count=BLOCKS + 1, block_tokens=1))
    session, _ = pool.create_session("", 10**12, False, 0)
    who = (session.session_id, session.epoch)
    owned = pool.allocate(*who, 25)
    boundaries = np.ones(20, np.int64)
    pool.commit(*who, owned[:20], "", [bytes([row]) for row in range(20)], boundaries, boundaries)
    pool.free(*who, owned[:10])
    pool.condemn(owned[15:16])
    return pool


def test_one_block_a_cell(pool: Pool) -> None:
    """Every letter is the state of its block."""
    per_cell, cells = block_map(pool.blocks)

    states = pool.blocks.states(np.arange(1, BLOCKS + 1)).tolist()
    assert per_cell == 1
    assert cells == "".join(LETTERS[BlockState(state)] for state in states)
    assert Counter(cells) == {"f": 35, "e": 10, "s": 9, "o": 5, "q": 1}


@pytest.mark.parametrize("most", [1, 7, 16, 59])
def test_many_blocks_a_cell(pool: Pool, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """A letter is the state of most of its blocks, but quarantine where there is one; the last cell may have fewer."""
    states = [LETTERS[BlockState(state)] for state in pool.blocks.states(np.arange(1, BLOCKS + 1)).tolist()]
    monkeypatch.setattr(module, "MAX_CELLS", most)

    per_cell, cells = block_map(pool.blocks)

    assert len(cells) <= most
    groups = [states[start : start + per_cell] for start in range(0, BLOCKS, per_cell)]
    assert len(groups) == len(cells)
    for letter, group in zip(cells, groups, strict=True):
        counts = Counter(group)
        assert letter == "q" if "q" in group else counts[letter] == max(counts.values())
