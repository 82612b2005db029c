"""Guarantee: rows of block refs are selected as rows of arrays are, and every selection is a column."""

from collections.abc import Sequence
from typing import Any, SupportsIndex

import numpy as np
import pytest
from numpy.typing import NDArray

from statepool.refs import BlockRefs

BLOCKS = BlockRefs.of([3, 1, 4], [7, 5, 9])


@pytest.mark.parametrize("index", [1, np.int64(1), np.uint32(1), np.array(1), -2, [1], (1,), range(1, 2), slice(1, 2)])
def test_one_row(index: SupportsIndex | Sequence[int] | slice) -> None:
    """One row is a column of one, whatever kind of number or sequence selects it."""
    assert BLOCKS[index] == BlockRefs.of([1], [5])


@pytest.mark.parametrize("index", [[2, 0], (2, 0), range(2, -1, -2), np.array([2, 0]), np.array([2, 0], np.uint32)])
def test_rows_in_any_order(index: Sequence[int] | NDArray[np.integer[Any]]) -> None:
    """Rows come in the order in which they are named."""
    assert BLOCKS[index] == BlockRefs.of([4, 3], [9, 7])


def test_rows_by_a_mask_or_none() -> None:
    """A mask selects by place, and an empty sequence nothing."""
    assert BLOCKS[BLOCKS.block_ids > 1] == BlockRefs.of([3, 4], [7, 9])
    assert BLOCKS[[]] == BLOCKS[()] == BLOCKS[:0] == BlockRefs.empty()


@pytest.mark.parametrize("index", [3, np.int64(3), [0, 3]])
def test_a_row_that_is_not_there(index: SupportsIndex | Sequence[int]) -> None:
    """A row past the end is an error, as in a list."""
    with pytest.raises(IndexError):
        _ = BLOCKS[index]
