"""Who may write which block, and when: no block has two writers at any moment, and no allocation is given twice."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from robustness.replay import Ref


@dataclass(slots=True)
class _Allocation:
    """A block in the hands of one owner."""

    generation: int
    owner: str
    asked_ns: int
    """The server gave the block away after this."""
    answered_ns: int
    """And before this."""
    used_ns: int
    """The owner had it still."""


class Ownership:
    """The allocations of one pool, as their owners saw them."""

    def __init__(self) -> None:
        self._by_block: defaultdict[int, dict[int, _Allocation]] = defaultdict(dict)
        self._twice: list[str] = []

    def allocated(self, ref: Ref, owner: str, asked_ns: int, answered_ns: int) -> None:
        """Takes note that an owner was given a block.

        Args:
            ref: The block.
            owner: Who.
            asked_ns: When the request was sent.
            answered_ns: When its answer was there.
        """
        block, generation = ref
        former = self._by_block[block].get(generation)
        if former is not None:
            self._twice.append(f"block {block}@{generation} was given to {former.owner} and to {owner}")
        self._by_block[block][generation] = _Allocation(generation, owner, asked_ns, answered_ns, asked_ns)

    def used(self, ref: Ref, until_ns: int) -> None:
        """Takes note that the owner of a block had it, and could write it, until some time at least."""
        block, generation = ref
        allocation = self._by_block[block].get(generation)
        if allocation is not None:
            allocation.used_ns = max(allocation.used_ns, until_ns)

    def violations(self) -> Iterator[str]:
        """Yields what no correct server does."""
        yield from self._twice
        for block, allocations in self._by_block.items():
            ordered = [allocations[generation] for generation in sorted(allocations)]
            for before, after in pairwise(ordered):
                if after.answered_ns < before.used_ns:
                    overlap = (before.used_ns - after.answered_ns) / 1e6
                    yield (
                        f"block {block} had two writers for {overlap:.3f} ms: {before.owner} @{before.generation}, "
                        f"{after.owner} @{after.generation}"
                    )
                if after.answered_ns < before.asked_ns:
                    yield f"block {block}@{after.generation} was given before @{before.generation} was asked for"
