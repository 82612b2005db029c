"""Prefix hashes: names for all tokens up to a block boundary, the same in every process and every language.

A chain of SHA-256 digests of 32 bytes. The root names no tokens; each block's hash is taken over the hash before it and
the block's tokens, so it names everything up to its end:

    root     = SHA-256("statepool/prefix/1" in ASCII || one zero byte || salt)
    hash[0]  = SHA-256(root || tokens of block 0)
    hash[i]  = SHA-256(hash[i - 1] || tokens of block i)

Each token id is 4 bytes, unsigned, little-endian; a block is ``block_tokens`` of them. The salt is any bytes: whatever
else the state depends on (the model's revision, an adapter, a tenant), so that what must not be shared never is.
"""

from collections.abc import Sequence
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from statepool.packing import FIXED32, pack

TokenIds = Sequence[int] | NDArray[np.integer]
"""Token ids from 0 to 2**32 - 1, ``[n]``."""

_DOMAIN = b"statepool/prefix/1\0"


class PrefixHasher:
    """Hashes a sequence of tokens that grows; it keeps the hashes, and of the tokens only those of an unfilled block.

    Attributes:
        block_tokens: Tokens per block.
        hashes: Hash of each full block's end, from the shortest prefix to the longest, ``[num_tokens // block_tokens]``
            (without those before ``parent``).
        num_tokens: Tokens seen.
    """

    def __init__(self, block_tokens: int, *, salt: bytes = b"", parent: bytes | None = None) -> None:
        """Begins a sequence.

        Args:
            block_tokens: Tokens per block.
            salt: What else the state depends on.
            parent: Hash of a boundary after which the tokens go on; None: they begin the sequence. It has the salt in
                it already.

        Raises:
            ValueError: block_tokens is not positive.
        """
        if block_tokens < 1:
            raise ValueError(f"block_tokens: {block_tokens} is not positive")
        self.block_tokens = block_tokens
        self.hashes: list[bytes] = []
        self.num_tokens = 0
        self._last = sha256(_DOMAIN + salt).digest() if parent is None else parent
        self._unfilled = b""

    def extend(self, token_ids: TokenIds) -> None:
        """Takes the tokens that follow.

        Raises:
            ValueError: Something is no integer from 0 to 2**32 - 1; then none of them is taken.
        """
        data, size = self._unfilled + pack(token_ids, "token_ids", FIXED32), self.block_tokens * FIXED32.itemsize
        whole = len(data) - len(data) % size
        for start in range(0, whole, size):
            self._last = sha256(self._last + data[start : start + size]).digest()
            self.hashes.append(self._last)
        self._unfilled = data[whole:]
        self.num_tokens += len(token_ids)


def prefix_hashes(
    token_ids: TokenIds, block_tokens: int, *, salt: bytes = b"", parent: bytes | None = None
) -> list[bytes]:
    """Hashes every full block of a sequence of tokens; the module's description has the bytes.

    Args:
        token_ids: The tokens.
        block_tokens: Tokens per block, ``Pool.block_tokens``.
        salt: What else the state depends on.
        parent: Hash of a boundary after which the tokens go on; None: they begin the sequence.

    Returns:
        Hashes of 32 bytes, from the shortest prefix to the longest, ``[len(token_ids) // block_tokens]``.

    Raises:
        ValueError: block_tokens is not positive, or a token id is no integer from 0 to 2**32 - 1.
    """
    hasher = PrefixHasher(block_tokens, salt=salt, parent=parent)
    hasher.extend(token_ids)
    return hasher.hashes
