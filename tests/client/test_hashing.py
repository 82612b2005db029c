"""Guarantee: prefix hashes are the documented bytes in every process, and name every token before their boundary."""

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statepool import prefix_hashes
from statepool.hashing import PrefixHasher

tokens = st.lists(st.integers(0, 2**32 - 1), max_size=70)
sizes = st.integers(1, 9)

VECTORS = [
    (
        [1, 2, 3, 4, 5],
        2,
        b"",
        [
            "109e3a418abc42b60de09c43a49bd564c6feada314c4f842727aeaa77985a01c",
            "a327a019b5fb54dd75578ec75b5b07b19292e38847676164807ab6adc7ad5197",
        ],
    ),
    (
        [2**32 - 1, 0, 123456],
        3,
        b"salt",
        ["427605e2389d3982859f1971acee4c17737d204a0a382073a13bcf00ae45455f"],
    ),
]
"""Made with printf and sha256sum. The root of the first is the digest of ``statepool/prefix/1`` and a zero byte, its
first hash that of the root's 32 bytes and ``01 00 00 00 02 00 00 00``."""


@pytest.mark.parametrize(("token_ids", "block_tokens", "salt", "expected"), VECTORS)
def test_the_bytes_are_those_of_the_description(
    token_ids: list[int], block_tokens: int, salt: bytes, expected: list[str]
) -> None:
    """Whoever follows the description in another language gets the same hashes."""
    hashes = prefix_hashes(token_ids, block_tokens, salt=salt)

    assert [value.hex() for value in hashes] == expected


def test_another_process_makes_the_same() -> None:
    """The hashes do not depend on Python's own hash seed."""
    code = "import statepool; print(statepool.prefix_hashes([1, 2, 3, 4, 5], 2)[1].hex())"

    made = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout.strip()
        for seed in ("1", "2")
    ]

    assert made == [VECTORS[0][3][1]] * 2


@given(tokens, sizes, st.lists(st.integers(0, 70), max_size=5))
def test_a_sequence_may_come_in_pieces(token_ids: list[int], block_tokens: int, cuts: list[int]) -> None:
    """Tokens that come one by one, in chunks or as an array give the hashes that they give at once."""
    hasher = PrefixHasher(block_tokens)
    edges = [0, *sorted(min(cut, len(token_ids)) for cut in cuts), len(token_ids)]

    for low, high in pairwise(edges):
        hasher.extend(np.array(token_ids[low:high], np.int64) if low % 2 else token_ids[low:high])

    assert hasher.hashes == prefix_hashes(token_ids, block_tokens)
    assert hasher.num_tokens == len(token_ids)


@given(tokens, sizes, st.integers(0, 9))
def test_a_sequence_goes_on_from_a_parent(token_ids: list[int], block_tokens: int, blocks: int) -> None:
    """The hashes after a boundary follow from its hash and the tokens after it, whatever the salt was."""
    hashes = prefix_hashes(token_ids, block_tokens, salt=b"s")
    blocks = min(blocks, len(hashes))
    parent = hashes[blocks - 1] if blocks else None

    rest = prefix_hashes(token_ids[blocks * block_tokens :], block_tokens, salt=b"s", parent=parent)

    assert hashes[:blocks] + rest == hashes


@given(tokens.filter(bool), sizes, st.data())
def test_another_token_is_another_prefix(token_ids: list[int], block_tokens: int, data: st.DataObject) -> None:
    """A token that differs changes the hashes of its block and of all after it, and none before."""
    row = data.draw(st.integers(0, len(token_ids) - 1))
    others = [*token_ids[:row], token_ids[row] ^ 1, *token_ids[row + 1 :]]

    pairs = zip(prefix_hashes(token_ids, block_tokens), prefix_hashes(others, block_tokens), strict=True)
    equal = [ours == theirs for ours, theirs in pairs]

    blocks = len(token_ids) // block_tokens
    assert equal == [block < row // block_tokens for block in range(blocks)]


def test_the_salt_keeps_prefixes_apart() -> None:
    """Equal tokens under two salts share no hash."""
    assert not set(prefix_hashes([1] * 8, 2)) & set(prefix_hashes([1] * 8, 2, salt=b"x"))


@pytest.mark.parametrize("bad", [[-1], [2**32], [1.5], ["a"], np.array([-1]), np.array([2**32]), np.ones((2, 2), int)])
def test_what_is_no_token_is_refused(bad: list[int]) -> None:
    """No token id is wrapped around into another one, and a refused piece leaves the sequence as it was."""
    hasher = PrefixHasher(1)
    hasher.extend([7])

    with pytest.raises(ValueError, match="token_ids"):
        hasher.extend(bad)

    assert hasher.hashes == prefix_hashes([7], 1)


def test_a_block_has_tokens() -> None:
    """A block of no tokens is refused."""
    with pytest.raises(ValueError, match="block_tokens"):
        prefix_hashes([1], 0)
