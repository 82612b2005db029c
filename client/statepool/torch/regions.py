"""Regions of host memory: a copy plan as columns of addresses, and the loop that runs them outside the GIL."""

import ctypes
from collections import deque
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from statepool.copies import Column, CopyPlan
from statepool.layout import ArenaLayout, Arrangement, StateKind

PIECE_BYTES = 4 * 2**20
"""Bytes; larger regions are cut so that threads get even shares."""

MIN_THREAD_BYTES = 256 * 2**10
"""Bytes; a smaller share is copied faster than another thread wakes up."""

_libc = ctypes.CDLL(None)
_memmove = _libc.memmove  # a foreign function: releases the GIL while it runs
_memmove.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_memmove.restype = None
_memset = _libc.memset
_memset.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
_memset.restype = None


@dataclass(frozen=True, slots=True, eq=False)
class Regions:
    """Regions of memory, columns ``[n]``."""

    sources: Column
    """Address to copy from (to zero: unused)."""
    destinations: Column
    """Address to copy to."""
    nbytes: Column
    """Bytes."""


def hazards(plan: CopyPlan) -> NDArray[np.bool_]:
    """Finds the rows that cannot run in any order: they read what another row writes, or write what another reads.

    A row that reads its own destination is no hazard: memmove is overlap-safe.
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


def plan_regions(plan: CopyPlan, layout: ArenaLayout, base: int) -> Regions:
    """Writes a plan without hazards and without strided copies as regions.

    Args:
        plan: The plan.
        layout: The arena's layout.
        base: Address of the arena.
    """
    whole = (plan.token_biases == 0) & (plan.temporal_src_blocks == plan.src_blocks)
    if layout.arrangement is Arrangement.BLOCK_MAJOR and whole.any():
        image_bytes = layout.block.image_bytes
        sources, destinations = plan.src_blocks[whole], plan.dst_blocks[whole]
        images = Regions(
            base + sources * image_bytes, base + destinations * image_bytes, np.full(len(sources), image_bytes)
        )
        return _join(_moving(images), _tensor_regions(plan, ~whole, layout, base))
    return _tensor_regions(plan, np.ones(len(plan), np.bool_), layout, base)


def zero_regions(block_ids: Column, layout: ArenaLayout, base: int) -> Regions:
    """Writes blocks as regions."""
    if layout.arrangement is Arrangement.BLOCK_MAJOR:
        starts = base + block_ids * layout.block.image_bytes
        return Regions(starts, starts, np.full(len(starts), layout.block.image_bytes))
    offsets, strides, nbytes = _tensor_columns(layout)
    starts = (base + offsets + block_ids[:, None] * strides).ravel()
    return Regions(starts, starts, np.tile(nbytes, len(block_ids)))


def split(regions: Regions, threads: int) -> list[Regions]:
    """Deals regions out to threads in even shares of bytes; small work is not dealt out."""
    total = int(regions.nbytes.sum())
    shares = min(threads, max(1, total // MIN_THREAD_BYTES))
    if shares == 1:
        return [regions]
    regions = _cut(regions)
    owners = np.minimum(np.cumsum(regions.nbytes) * shares // (total + 1), shares - 1)
    bounds = np.searchsorted(owners, np.arange(shares + 1))
    return [
        Regions(regions.sources[a:b], regions.destinations[a:b], regions.nbytes[a:b])
        for a, b in pairwise(bounds.tolist())
        if a < b
    ]


def run_copies(regions: Regions) -> None:
    """Copies region after region; the loop itself runs in C."""
    columns = (regions.destinations.tolist(), regions.sources.tolist(), regions.nbytes.tolist())
    deque(map(_memmove, *columns), maxlen=0)


def run_zeroing(regions: Regions) -> None:
    """Zeroes region after region."""
    columns = (regions.destinations.tolist(), [0] * len(regions.nbytes), regions.nbytes.tolist())
    deque(map(_memset, *columns), maxlen=0)


def _tensor_regions(plan: CopyPlan, rows: NDArray[np.bool_], layout: ArenaLayout, base: int) -> Regions:
    """Writes rows of a plan as one region per tensor; temporal ones come from the temporal source."""
    offsets, strides, nbytes = _tensor_columns(layout)
    states = layout.block.states
    temporal = np.array([state.kind is StateKind.TEMPORAL for state in states])
    row_bytes = np.array([s.nbytes // s.shape[0] if s.kind is StateKind.CONV else 0 for s in states], np.int64)
    blocks = np.where(temporal, plan.temporal_src_blocks[rows, None], plan.src_blocks[rows, None])
    left_out = plan.token_biases[rows, None] * row_bytes
    sources = base + offsets + blocks * strides + left_out
    destinations = base + offsets + plan.dst_blocks[rows, None] * strides
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


def _last_row_of(blocks: Column, plan: CopyPlan) -> Column:
    top = max(int(column.max()) for column in (plan.src_blocks, plan.dst_blocks, plan.temporal_src_blocks))
    rows = np.full(top + 1, -1, np.int64)
    rows[blocks] = np.arange(len(blocks))
    return rows
