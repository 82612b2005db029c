"""Block images: the bytes of one block, in the order of its layout whatever the arrangement of the arena."""

from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np
import xxhash

from statepool.host.regions import Bytes
from statepool.host.shifts import copy_shifted
from statepool.layout import ArenaLayout, Arrangement, StateKind

Span: TypeAlias = Callable[[int, int], Bytes]
"""Reads an arena: first byte and length to uint8, ``[length]``, a view where the memory is the host's."""


def read_image(read: Span, layout: ArenaLayout, block_id: int, offset: int, length: int) -> bytes | memoryview:
    """Reads bytes of a block image.

    Args:
        read: Reads the arena.
        layout: Its layout.
        block_id: The block.
        offset: First byte in the image.
        length: Bytes; the range must lie in the image.

    Returns:
        The bytes, in the arena itself where they are a run of host memory; padding between tensors reads as zero.
    """
    if layout.arrangement is Arrangement.BLOCK_MAJOR:  # padding is never written, so it is zero in the arena too
        start = block_id * layout.block.image_bytes + offset
        return read(start, length).data
    image = bytearray(length)
    for start, place, size in _pieces(layout, block_id, offset, length):
        image[place : place + size] = read(start, size).data
    return bytes(image)


def read_shifted_image(
    read: Span,
    layout: ArenaLayout,
    block_id: int,
    temporal_block_id: int,
    token_bias: int,
    offset: int,
    length: int,
) -> bytes:
    """Reads bytes of the image that a copy with a bias would leave in a blank block.

    Args:
        read: Reads the arena.
        layout: Its layout.
        block_id: Block of all states but the temporal ones.
        temporal_block_id: Block of the temporal states.
        token_bias: Rows of the conv states, from the first, that are left out.
        offset: First byte in the image.
        length: Bytes; the range must lie in the image.

    Returns:
        The bytes; what is shifted in, and padding, reads as zero.
    """
    image = bytearray(length)
    for spec in layout.tensors:
        state, first = spec.state, max(offset, spec.image_offset)
        end = min(offset + length, spec.image_offset + state.nbytes)
        if first < end:
            block = temporal_block_id if state.kind is StateKind.TEMPORAL else block_id
            start, begin, size = spec.arena_offset + block * spec.block_stride, first - spec.image_offset, end - first
            if state.kind is StateKind.CONV and token_bias:
                source = read(start, state.nbytes)
                shifted = np.zeros_like(source)
                copy_shifted(source, shifted, state, token_bias, layout.block.conv_layout)
                data = shifted[begin : begin + size]
            else:
                data = read(start + begin, size)
            image[first - offset : end - offset] = data.data
    return bytes(image)


def write_image(
    write: Callable[[int, Bytes], object], layout: ArenaLayout, block_id: int, offset: int, data: bytes | memoryview
) -> None:
    """Writes bytes of a block image; bytes that fall on padding are dropped.

    Args:
        write: Writes bytes into the arena, from a first byte on.
        layout: Its layout.
        block_id: The block.
        offset: First byte in the image.
        data: The bytes; the range must lie in the image.
    """
    source = np.frombuffer(data, np.uint8)
    for start, place, size in _pieces(layout, block_id, offset, len(data)):
        write(start, source[place : place + size])


def image_checksum(read: Span, layout: ArenaLayout, block_id: int) -> int:
    """Computes xxh3_64 of a block's states, in the order of its layout, without the padding between them.

    Args:
        read: Reads the arena.
        layout: Its layout.
        block_id: The block.
    """
    digest = xxhash.xxh3_64()
    for start, _, size in _pieces(layout, block_id, 0, layout.block.image_bytes):
        digest.update(read(start, size).data)
    return digest.intdigest()


def _pieces(layout: ArenaLayout, block_id: int, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
    """Cuts a range of an image at its padding: offset in the arena, offset in the range, bytes."""
    for run in layout.runs:
        first = max(offset, run.image_offset)
        end = min(offset + length, run.image_offset + run.nbytes)
        if first < end:
            start = run.arena_offset + block_id * run.block_stride + first - run.image_offset
            yield start, first - offset, end - first
