"""Block refs: what every call that touches blocks names them by."""

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class BlockRefs:
    """A column of (block id, generation) pairs.

    A generation is odd while the block is allocated and grows by one at every allocation and every release, so a ref
    that outlived its block is *stale* and refused by every call.

    Raises:
        ValueError: The columns differ in length, or are not one-dimensional.
    """

    block_ids: NDArray[np.int64]
    """Block ids, ``[n]``."""
    generations: NDArray[np.int64]
    """Generations at the time the refs were handed out, ``[n]``."""

    def __post_init__(self) -> None:
        if self.block_ids.ndim != 1 or self.block_ids.shape != self.generations.shape:
            raise ValueError(
                f"block_ids {list(self.block_ids.shape)} and generations {list(self.generations.shape)} "
                "must be columns of one length"
            )

    @classmethod
    def of(cls, block_ids: ArrayLike, generations: ArrayLike) -> "BlockRefs":
        """Builds refs from anything numpy can read as two columns of integers.

        Raises:
            ValueError: Something else than integers.
        """
        return cls(_integers(block_ids, "block_ids"), _integers(generations, "generations"))

    @classmethod
    def empty(cls) -> "BlockRefs":
        """Builds a column of no refs."""
        return cls.of([], [])

    @classmethod
    def concat(cls, parts: Sequence["BlockRefs"]) -> "BlockRefs":
        """Joins columns in order."""
        if not parts:
            return cls.empty()
        return cls(
            np.concatenate([part.block_ids for part in parts]), np.concatenate([part.generations for part in parts])
        )

    def __len__(self) -> int:
        return len(self.block_ids)

    def __getitem__(
        self, index: SupportsIndex | slice | Sequence[int] | NDArray[np.integer[Any]] | NDArray[np.bool_]
    ) -> "BlockRefs":
        """Selects rows; a single number gives a column of one, so that every selection can be passed to a call."""
        rows: slice | list[int] | NDArray[Any]
        if isinstance(index, slice):
            rows = index
        elif isinstance(index, np.ndarray):
            rows = np.atleast_1d(index)
        elif isinstance(index, Sequence):
            rows = list(index)  # of a tuple, numpy would take each number for an index into another dimension
        else:
            rows = [operator.index(index)]
        return BlockRefs(self.block_ids[rows], self.generations[rows])

    def __iter__(self) -> Iterator["BlockRefs"]:
        return (self[index] for index in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BlockRefs):
            return NotImplemented
        return np.array_equal(self.block_ids, other.block_ids) and np.array_equal(self.generations, other.generations)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(f"{i}@{g}" for i, g in zip(self.block_ids[:4], self.generations[:4], strict=True))
        return f"<BlockRefs [{len(self)}] {shown}{', …' if len(self) > 4 else ''}>"


def _integers(values: ArrayLike, name: str) -> NDArray[np.int64]:
    column = np.asarray(values)
    if column.size and column.dtype.kind not in "iu":
        raise ValueError(f"{name}: must be a column of integers")
    return column.astype(np.int64, copy=False)
