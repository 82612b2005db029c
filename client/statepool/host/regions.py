"""Regions of an arena: a copy plan as columns of offsets, and the loop that runs them outside the GIL."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from statepool.copies import Column, CopyPlan
from statepool.layout import ArenaLayout, Arrangement, StateKind

PIECE_BYTES = 16 * 2**20
"""Bytes; larger regions are cut so that threads get even shares."""

MIN_THREAD_BYTES = 256 * 2**10
"""Bytes; a smaller share is copied faster than another thread wakes up."""

Bytes = NDArray[np.uint8]
"""Host memory as bytes."""


@dataclass(frozen=True, slots=True, eq=False)
class Regions:
    """Regions of an arena, columns ``[n]``."""

    sources: Column
    """Bytes from its start to copy from (to zero: the destination)."""
    destinations: Column
    """Bytes from its start to copy to."""
    nbytes: Column
    """Bytes."""


def hazards(plan: CopyPlan) -> NDArray[np.bool_]:
    """Finds the rows that cannot run in any order: they read what another row writes, or write what another reads.

    A row that reads its own destination is no hazard: running a region is overlap-safe.
    """
    writer = _last_row_of(plan.dst_blocks, plan)
    rows = np.arange(len(plan))
    found = np.zeros(len(plan), np.bool_)
    for sources in (plan.src_blocks, plan.temporal_src_blocks):
        writers = writer[sources]
        crossing = (writers >= 0) & (writers != rows)
        found |= crossing
        found[writers[crossing]] = True
    return found


def plan_regions(plan: CopyPlan, layout: ArenaLayout) -> Regions:
    """Writes a plan without hazards and without strided copies as regions."""
    whole = (plan.token_biases == 0) & (plan.temporal_src_blocks == plan.src_blocks)
    if layout.arrangement is Arrangement.BLOCK_MAJOR and whole.any():
        image_bytes = layout.block.image_bytes
        sources, destinations = plan.src_blocks[whole], plan.dst_blocks[whole]
        sizes = np.full(len(sources), image_bytes)
        images = Regions(sources * image_bytes, destinations * image_bytes, sizes)
        return _join(_moving(images), _tensor_regions(plan, ~whole, layout))
    return _tensor_regions(plan, np.ones(len(plan), np.bool_), layout)


def zero_regions(block_ids: Column, layout: ArenaLayout) -> Regions:
    """Writes blocks as regions."""
    if layout.arrangement is Arrangement.BLOCK_MAJOR:
        starts = block_ids * layout.block.image_bytes
        return Regions(starts, starts, np.full(len(starts), layout.block.image_bytes))
    offsets, strides, nbytes = _tensor_columns(layout)
    starts = (offsets + block_ids[:, None] * strides).ravel()
    return Regions(starts, starts, np.tile(nbytes, len(block_ids)))


def split(regions: Regions, threads: int) -> list[Regions]:
    """Deals regions out to threads in even shares of bytes; small work is not dealt out."""
    total = int(regions.nbytes.sum())
    shares = min(threads, max(1, total // MIN_THREAD_BYTES))
    if shares == 1:
        return [regions]
    regions = _by_destination(_cut(regions))
    owners = np.minimum(np.cumsum(regions.nbytes) * shares // (total + 1), shares - 1)
    bounds = np.searchsorted(owners, np.arange(shares + 1))
    return [
        Regions(regions.sources[a:b], regions.destinations[a:b], regions.nbytes[a:b])
        for a, b in pairwise(bounds.tolist())
        if a < b
    ]


def run_copies(memory: Bytes, regions: Regions) -> None:
    """Copies region after region; numpy lets go of the GIL meanwhile, and copies overlapping ones as if staged.

    Args:
        memory: The arena, uint8, ``[arena bytes]``.
        regions: Offsets into it.
    """
    size = int(regions.nbytes[0]) if len(regions.nbytes) else 0
    if size and _are_rows(regions, size):
        rows = memory[: len(memory) // size * size].reshape(-1, size)
        for source, destination in zip(
            (regions.sources // size).tolist(), (regions.destinations // size).tolist(), strict=True
        ):
            rows[destination] = rows[source]  # half the interpreter's share of slicing, which counts at 64 KiB
        return
    columns = (regions.sources.tolist(), regions.destinations.tolist(), regions.nbytes.tolist())
    for source, destination, nbytes in zip(*columns, strict=True):
        memory[destination : destination + nbytes] = memory[source : source + nbytes]


def run_zeroing(memory: Bytes, regions: Regions) -> None:
    """Zeroes region after region.

    Args:
        memory: The arena, uint8, ``[arena bytes]``.
        regions: Offsets into it.
    """
    for start, nbytes in zip(regions.destinations.tolist(), regions.nbytes.tolist(), strict=True):
        memory[start : start + nbytes] = 0


def _are_rows(regions: Regions, size: int) -> bool:
    """Tells whether all regions are rows of one matrix, as whole blocks in block-major order are."""
    uneven = (regions.nbytes != size) | (regions.sources % size != 0) | (regions.destinations % size != 0)
    return not uneven.any()


def _tensor_regions(plan: CopyPlan, rows: NDArray[np.bool_], layout: ArenaLayout) -> Regions:
    """Writes rows of a plan as one region per tensor; temporal ones come from the temporal source."""
    offsets, strides, nbytes = _tensor_columns(layout)
    states = layout.block.states
    temporal = np.array([state.kind is StateKind.TEMPORAL for state in states])
    row_bytes = np.array([s.nbytes // s.shape[0] if s.kind is StateKind.CONV else 0 for s in states], np.int64)
    blocks = np.where(temporal, plan.temporal_src_blocks[rows, None], plan.src_blocks[rows, None])
    left_out = plan.token_biases[rows, None] * row_bytes
    sources = offsets + blocks * strides + left_out
    destinations = offsets + plan.dst_blocks[rows, None] * strides
    return _moving(Regions(sources.ravel(), destinations.ravel(), (nbytes - left_out).ravel()))


def _tensor_columns(layout: ArenaLayout) -> tuple[Column, Column, Column]:
    offsets = np.array([spec.arena_offset for spec in layout.tensors], np.int64)
    strides = np.array([spec.block_stride for spec in layout.tensors], np.int64)
    return offsets, strides, np.array([spec.state.nbytes for spec in layout.tensors], np.int64)


def _moving(regions: Regions) -> Regions:
    moving = regions.sources != regions.destinations
    if moving.all():
        return regions
    return Regions(regions.sources[moving], regions.destinations[moving], regions.nbytes[moving])


def _join(first: Regions, second: Regions) -> Regions:
    if not len(second.nbytes):
        return first
    return Regions(
        np.concatenate((first.sources, second.sources)),
        np.concatenate((first.destinations, second.destinations)),
        np.concatenate((first.nbytes, second.nbytes)),
    )


def _cut(regions: Regions) -> Regions:
    """Cuts large regions into pieces. A region that overlaps itself (a shift in place) is not cut."""
    overlap = np.abs(regions.sources - regions.destinations) < regions.nbytes
    same = regions.sources == regions.destinations  # zeroing
    pieces = np.where(overlap & ~same, 1, -(-regions.nbytes // PIECE_BYTES))
    if (pieces == 1).all():
        return regions
    owner = np.repeat(np.arange(len(pieces)), pieces)
    starts = (np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * PIECE_BYTES
    left = regions.nbytes[owner] - starts
    nbytes = np.where(np.repeat(pieces, pieces) == 1, left, np.minimum(left, PIECE_BYTES))
    return Regions(regions.sources[owner] + starts, regions.destinations[owner] + starts, nbytes)


def _by_destination(regions: Regions) -> Regions:
    """Sorts regions, which may run in any order: writing upwards is kinder to caches and page tables."""
    order = np.argsort(regions.destinations)
    return Regions(regions.sources[order], regions.destinations[order], regions.nbytes[order])


def _last_row_of(blocks: Column, plan: CopyPlan) -> Column:
    top = max(int(column.max()) for column in (plan.src_blocks, plan.dst_blocks, plan.temporal_src_blocks))
    rows = np.full(top + 1, -1, np.int64)
    rows[blocks] = np.arange(len(blocks))
    return rows
