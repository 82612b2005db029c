"""Which part of which rank becomes which part of a rank of another tensor-parallel size."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from statepool.convert.segments import Segment


@dataclass(frozen=True, slots=True)
class Share:
    """A run of elements along the divided dimension, and where it goes."""

    source_rank: int
    """Rank that has it."""
    source_start: int
    """Its first element there."""
    target_start: int
    """Where it goes."""
    size: int
    """Elements."""


def shares(
    source: Sequence[Segment], target: Sequence[Segment], source_tp: int, target_tp: int, target_rank: int
) -> Iterator[Share]:
    """Lists the runs that a rank's dimension is put together from, in its order.

    Args:
        source: What the dimension is made of at the source.
        target: The same at the target.
        source_tp: Ranks of the source.
        target_tp: Ranks of the target.
        target_rank: The rank.

    Raises:
        ValueError: A segment cannot be divided.
    """
    source_at = target_at = 0
    for have, want in zip(source, target, strict=True):
        held, wanted = have.share(source_tp), want.share(target_tp)
        first = 0 if want.is_replicated else target_rank * wanted
        yield from _runs(have, source_at, held, source_tp, _Wanted(first, wanted, target_at, target_rank, target_tp))
        source_at, target_at = source_at + held, target_at + wanted


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A run of a segment of the whole model."""

    first: int
    size: int
    target_start: int
    target_rank: int
    target_tp: int


def _runs(have: Segment, source_at: int, held: int, source_tp: int, wanted: _Wanted) -> Iterator[Share]:
    if have.is_replicated:  # any rank has it; this one is read for the rest of the state as well
        rank = wanted.target_rank * source_tp // wanted.target_tp
        yield Share(rank, source_at + wanted.first, wanted.target_start, wanted.size)
        return
    at, end = wanted.first, wanted.first + wanted.size
    while at < end:
        rank, inside = divmod(at, held)
        size = min(held - inside, end - at)
        yield Share(rank, source_at + inside, wanted.target_start + at - wanted.first, size)
        at += size
