"""The prefix index: which committed block holds the state after which prefix."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from statepool_server.blocks import first_true
from statepool_server.recency import Ids

Objects = NDArray[np.object_]
"""Prefix hashes of a batch, ``[n]``."""

_UNLISTED = 0


@dataclass(frozen=True, slots=True, eq=False)
class PrefixesState:
    """The entries of one namespace at a moment."""

    namespace: str
    """The namespace."""
    prefix_hashes: list[bytes]
    """Its hashes, ``[n]``."""
    block_ids: Ids
    """Their blocks, ``[n]``."""


@dataclass(frozen=True, slots=True, eq=False)
class PrefixColumns:
    """Everything that could be found at a moment, in the order of block ids."""

    block_ids: Ids
    """The blocks, ``[n]``."""
    prefix_hashes: Objects
    """Their hashes, ``[n]``."""
    numbers: Ids
    """Numbers of the hashes' namespaces, ``[n]``."""
    names: dict[int, str]
    """The namespaces by number."""


class PrefixIndex:
    """Hashes to blocks, apart for each namespace; a block has at most one hash.

    A namespace has a number while it has hashes, so that a batch of blocks is told apart by comparing integers.
    """

    def __init__(self, block_count: int) -> None:
        self._numbers: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._blocks: dict[int, dict[bytes, int]] = {}
        self._last_number = self._count = 0
        self._number_of = np.full(block_count, _UNLISTED, np.int64)
        self._hash_of = np.full(block_count, None, np.object_)  # of a block that is not listed: the last, or None

    def __len__(self) -> int:
        return self._count

    def find_all(self, namespace: str, prefix_hashes: Iterable[bytes]) -> list[int]:
        """Finds the blocks of the hashes that are known, in order, each block once."""
        known = self._known(namespace)
        return list(dict.fromkeys(known[value] for value in prefix_hashes if value in known))

    def deepest(self, namespace: str, prefix_hashes: Sequence[bytes]) -> tuple[int, int] | None:
        """Finds the last hash that is known.

        Returns:
            Its row and its block, or None.
        """
        known = self._known(namespace)
        if known:
            for row in range(len(prefix_hashes) - 1, -1, -1):
                block = known.get(prefix_hashes[row])
                if block is not None:
                    return row, block
        return None

    def name_of(self, block_id: int) -> tuple[str, bytes] | None:
        """Tells the namespace and the hash of a block."""
        number = int(self._number_of[block_id])
        return (self._names[number], self._hash_of[block_id]) if number else None

    def insert(self, namespace: str, prefix_hashes: Sequence[bytes], block_ids: Ids) -> Ids:
        """Adds hashes, unless they are known.

        Args:
            namespace: Where.
            prefix_hashes: The hashes; one that occurs twice goes to its first block.
            block_ids: A block for each, ``[n]``.

        Returns:
            For each hash, the block that holds it now, ``[n]``; `block_ids` itself where no hash was known.
        """
        if not prefix_hashes:
            return block_ids
        number, wanted = self._number(namespace), block_ids.tolist()
        known = self._blocks[number]
        before = len(known)
        found = list(map(known.setdefault, prefix_hashes, wanted))
        self._count += len(known) - before
        values = np.array(prefix_hashes, np.object_)
        if found == wanted:
            self._hash_of[block_ids], self._number_of[block_ids] = values, number
            return block_ids
        holders = np.array(found, np.int64)
        own = holders == block_ids
        self._hash_of[block_ids[own]], self._number_of[block_ids[own]] = values[own], number
        return holders

    def remove(self, block_ids: Ids) -> None:
        """Takes blocks out; each must be in."""
        numbers, values = self._number_of[block_ids], self._hash_of[block_ids]
        self._number_of[block_ids] = _UNLISTED
        self._count -= len(block_ids)
        while len(numbers):
            others = numbers != numbers[0]
            if first_true(others) < 0:
                self._remove(int(numbers[0]), values)
                return
            self._remove(int(numbers[0]), values[~others])
            numbers, values = numbers[others], values[others]

    def items(self) -> Iterator[tuple[str, bytes, int]]:
        """Lists everything, in the order of block ids."""
        for block in np.flatnonzero(self._number_of).tolist():
            yield self._names[int(self._number_of[block])], self._hash_of[block], block

    def columns(self) -> PrefixColumns:
        """Copies everything, row by row; a millisecond for a quarter of a million blocks."""
        ids = np.flatnonzero(self._number_of)
        return PrefixColumns(ids, self._hash_of[ids], self._number_of[ids], dict(self._names))

    def dump(self) -> list[PrefixesState]:
        """Copies everything, namespace by namespace."""
        return [
            PrefixesState(name, list(self._blocks[number]), np.fromiter(self._blocks[number].values(), np.int64))
            for name, number in self._numbers.items()
        ]

    def load(self, state: Iterable[PrefixesState]) -> None:
        """Takes a state over; the index must be empty."""
        for entries in state:
            self.insert(entries.namespace, entries.prefix_hashes, entries.block_ids)

    def _known(self, namespace: str) -> dict[bytes, int]:
        return self._blocks.get(self._numbers.get(namespace, _UNLISTED), {})

    def _number(self, namespace: str) -> int:
        number = self._numbers.get(namespace)
        if number is None:
            number = self._last_number = self._last_number + 1
            self._numbers[namespace], self._names[number], self._blocks[number] = number, namespace, {}
        return number

    def _remove(self, number: int, values: Objects) -> None:
        known = self._blocks[number]
        for value in values.tolist():
            del known[value]  # as a statement it costs a third of mapping __delitem__
        if not known:
            del self._blocks[number], self._numbers[self._names.pop(number)]
