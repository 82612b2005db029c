"""Guarantee: a commit lists exactly the blocks that were written to their boundary, whole or not at all."""

import numpy as np
import pytest

from statepool.errors import (
    BadFieldError,
    BlockBusyError,
    BlockNotOwnedError,
    BlockNotWritableError,
    BoundaryNotWrittenError,
    ColumnLengthMismatchError,
)
from statepool.refs import BlockRefs
from support.small_pool import ALICE, BOB, commit, ids, small_pool


@pytest.mark.parametrize("boundary", [0, -4, 3, 6])
def test_a_boundary_is_a_positive_multiple_of_the_block_size(boundary: int) -> None:
    """Any other boundary is refused, with the row."""
    pool = small_pool()
    refs = pool.allocate(*ALICE, 2)
    tokens = np.array([4, boundary])

    with pytest.raises(BadFieldError) as refused:
        pool.commit(*ALICE, refs, "m", [b"a", b"b"], tokens, tokens)

    assert (refused.value.field, refused.value.metadata["row"]) == ("boundary_tokens", "1")
    assert pool.usage().committed == 0


@pytest.mark.parametrize("written", [3, 5, 8])
def test_tokens_written_through_are_the_boundary(written: int) -> None:
    """A block that was written less far, or farther, does not hold the state at the boundary."""
    pool = small_pool()
    refs = pool.allocate(*ALICE, 1)

    with pytest.raises(BoundaryNotWrittenError):
        pool.commit(*ALICE, refs, "m", [b"a"], np.array([4]), np.array([written]))

    assert pool.usage().committed == 0


def test_columns_have_one_length() -> None:
    """The column that is too short is named."""
    pool = small_pool()
    refs = pool.allocate(*ALICE, 2)

    with pytest.raises(ColumnLengthMismatchError) as refused:
        commit(pool, ALICE, refs, [b"a"])

    assert refused.value.field == "prefix_hashes"


def test_a_known_hash_keeps_its_block() -> None:
    """The row's own block stays uncommitted, and the answer names the block that holds the hash."""
    pool = small_pool()
    refs = pool.allocate(*ALICE, 2)
    commit(pool, ALICE, refs[0], [b"a"])

    result = commit(pool, ALICE, refs, [b"a", b"a"])

    assert ids(result.holders) == [1, 1]
    assert result.duplicate_rows.tolist() == [1]
    assert pool.blocks.committed[1:3].tolist() == [True, False]


def test_of_equal_hashes_in_one_call_the_first_row_wins() -> None:
    """Later rows are duplicates of the first."""
    pool = small_pool()
    refs = pool.allocate(*ALICE, 3)

    result = commit(pool, ALICE, refs, [b"a", b"b", b"a"])

    assert (ids(result.holders), result.duplicate_rows.tolist()) == ([1, 2, 1], [2])
    assert pool.usage().committed == 2


def test_namespaces_are_apart() -> None:
    """The same hash in two namespaces is two prefixes; an unknown namespace has none."""
    pool = small_pool()
    refs = pool.allocate(*ALICE, 2)

    result = commit(pool, ALICE, refs[0], [b"a"], "m"), commit(pool, ALICE, refs[1], [b"a"], "n")

    assert [len(part.duplicate_rows) for part in result] == [0, 0]
    assert [pool.prefixes.find_all(name, [b"a"]) for name in ("m", "n", "o")] == [[1], [2], []]


def test_a_committed_block_is_not_committed_under_another_name() -> None:
    """Not even as part of a batch that is good otherwise."""
    pool = small_pool()
    refs = pool.allocate(*ALICE, 2)
    commit(pool, ALICE, refs[0], [b"a"])

    for hashes, namespace in (([b"b", b"c"], "m"), ([b"a", b"c"], "n")):
        with pytest.raises(BlockNotWritableError):
            commit(pool, ALICE, refs, hashes, namespace)

    assert pool.usage().committed == 1


def test_only_the_owner_commits() -> None:
    """Another session's block is refused, and one named twice as well."""
    pool = small_pool()
    refs = pool.allocate(*ALICE, 1)

    with pytest.raises(BlockNotOwnedError):
        commit(pool, BOB, refs, [b"a"])
    with pytest.raises(BadFieldError):
        commit(pool, ALICE, BlockRefs.concat([refs, refs]), [b"a", b"b"])


def test_a_block_that_is_being_written_is_not_committed() -> None:
    """A writer stands in the way, a reader does not."""
    pool = small_pool()
    refs = pool.allocate(*ALICE, 1)
    pin = pool.pin_write(*ALICE, refs)

    with pytest.raises(BlockBusyError):
        commit(pool, ALICE, refs, [b"a"])
    pool.unpin(pin)
    pool.pin_read(*ALICE, refs)
    commit(pool, ALICE, refs, [b"a"])

    assert pool.usage().committed == 1
