"""Guarantee: prefill chunks end where their states are worth keeping, and always get on."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statepool import align_chunk


@pytest.mark.parametrize(
    ("num_computed", "num_new", "num_tokens", "expected"),
    [
        (0, 9, 26, 8),  # cut down to a boundary
        (0, 8, 26, 8),
        (0, 3, 26, 3),  # reaches no boundary
        (3, 3, 26, 1),  # begins anywhere, ends at a boundary
        (3, 10, 26, 9),
        (16, 10, 26, 8),  # ends at the last boundary
        (24, 2, 26, 2),  # the rest is one chunk
        (0, 26, 26, 24),
        (24, 99, 26, 2),  # no more than is known
        (0, 24, 24, 24),
        (0, 3, 3, 3),
        (25, 1, 26, 1),  # decodes
        (23, 3, 24, 3),  # decodes past a boundary, with drafts
        (0, 0, 26, 0),
    ],
)
def test_chunks_of_blocks_of_four(num_computed: int, num_new: int, num_tokens: int, expected: int) -> None:
    """The rules, one by one."""
    assert align_chunk(num_computed, num_new, num_tokens, 4) == expected


@st.composite
def prefills(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """Draws a sequence in the middle of its prefill: computed, budget, known tokens, block size."""
    num_tokens = draw(st.integers(2, 200))
    num_computed = draw(st.integers(0, num_tokens - 2))
    return num_computed, draw(st.integers(1, 250)), num_tokens, draw(st.integers(1, 40))


@given(prefills())
def test_a_chunk_ends_at_the_furthest_boundary_that_it_may(prefill: tuple[int, int, int, int]) -> None:
    """Of all ends within the budget it takes the last boundary, or the budget where there is no boundary."""
    num_computed, num_new, num_tokens, block_tokens = prefill
    ends = range(num_computed + 1, min(num_computed + num_new, num_tokens) + 1)
    boundaries = [end for end in ends if end % block_tokens == 0]

    end = num_computed + align_chunk(*prefill)

    assert end == (boundaries[-1] if boundaries else ends[-1])


@given(prefills())
def test_a_prefill_passes_no_boundary_that_a_hit_could_use(prefill: tuple[int, int, int, int]) -> None:
    """Chunk by chunk it comes to its end, and on the way it stops at the last boundary of the known tokens."""
    start, budget, num_tokens, block_tokens = prefill
    last, ends = num_tokens // block_tokens * block_tokens, [start]

    while ends[-1] < num_tokens:
        new = min(budget, num_tokens - ends[-1])
        ends.append(ends[-1] + align_chunk(ends[-1], new, num_tokens, block_tokens))

    assert last in ends or last < start
    assert all(after > before for before, after in pairwise(ends))


@given(st.integers(1, 10**6), st.integers(1, 9), st.integers(1, 4096))
def test_decoding_is_never_clipped(num_tokens: int, num_new: int, block_tokens: int) -> None:
    """A pass over the last known token and its drafts stays as it is, boundary or not."""
    assert align_chunk(num_tokens - 1, num_new, num_tokens, block_tokens) == num_new
