"""Guarantee: the recency log gives blocks up in the order of their last use, whatever happened in between."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from statepool_server.recency import RecencyLog

BLOCK_COUNT = 6
Step = tuple[str, list[int]]
steps = st.lists(
    st.tuples(st.sampled_from(["use", "use", "use", "discard", "pop"]), st.lists(st.integers(0, 5), max_size=4)),
    max_size=120,
)


@given(steps)
def test_the_log_agrees_with_a_list(history: list[Step]) -> None:
    """Long histories move the living entries to the front of the log more than once."""
    log, expected = RecencyLog(BLOCK_COUNT), list[int]()

    for kind, blocks in history:
        if kind == "pop":
            count = min(len(blocks), len(expected))
            assert log.pop(count).tolist() == expected[:count]
            expected = expected[count:]
            continue
        log.discard(np.array(blocks, np.int64))
        expected = [block for block in expected if block not in blocks]
        if kind == "use":
            used = list(dict.fromkeys(blocks))
            log.append(np.array(used, np.int64))
            expected += used

        assert log.block_ids().tolist() == expected
        assert len(log) == len(expected)


def test_a_full_log_makes_room() -> None:
    """Appending goes on for ever, and the order outlives every move to the front."""
    log = RecencyLog(BLOCK_COUNT)
    log.append(np.arange(BLOCK_COUNT))

    for turn in range(500):
        block = np.array([turn % BLOCK_COUNT])
        log.discard(block)
        log.append(block)

    assert log.pop(BLOCK_COUNT).tolist() == [2, 3, 4, 5, 0, 1]


def test_the_oldest_is_found_behind_many_dead_entries() -> None:
    """Blocks that left the order are passed over, however many they are."""
    log = RecencyLog(5000)
    log.append(np.arange(5000))
    log.discard(np.arange(4990))

    assert log.pop(2).tolist() == [4990, 4991]
    assert len(log) == 8
