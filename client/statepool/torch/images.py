"""Block images: the bytes of one block, in the order of its layout whatever the arrangement of the arena."""

from collections.abc import Iterator

import numpy as np
import torch
import xxhash

from statepool.layout import ArenaLayout, Arrangement, ConvLayout, StateKind, StateSpec


def read_image(arena: torch.Tensor, layout: ArenaLayout, block_id: int, offset: int, length: int) -> bytes:
    """Reads bytes of a block image.

    Args:
        arena: uint8, ``[arena bytes]``, on any device.
        layout: Its layout.
        block_id: The block.
        offset: First byte in the image.
        length: Bytes; the range must lie in the image.

    Returns:
        The bytes; padding between tensors reads as zero.
    """
    if layout.arrangement is Arrangement.BLOCK_MAJOR:  # padding is never written, so it is zero in the arena too
        start = block_id * layout.block.image_bytes + offset
        return _bytes(arena[start : start + length])
    image = bytearray(length)
    for start, place, size in _pieces(layout, block_id, offset, length):
        image[place : place + size] = _bytes(arena[start : start + size])
    return bytes(image)


def read_shifted_image(
    arena: torch.Tensor,
    layout: ArenaLayout,
    block_id: int,
    temporal_block_id: int,
    token_bias: int,
    offset: int,
    length: int,
) -> bytes:
    """Reads bytes of the image that a copy with a bias would leave in a blank block.

    Args:
        arena: uint8, ``[arena bytes]``, on any device.
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
            start = spec.arena_offset + block * spec.block_stride
            data = _bytes(arena[start : start + state.nbytes])
            if state.kind is StateKind.CONV and token_bias:
                data = _shifted(data, state, token_bias, layout.block.conv_layout)
            image[first - offset : end - offset] = data[first - spec.image_offset : end - spec.image_offset]
    return bytes(image)


def write_image(arena: torch.Tensor, layout: ArenaLayout, block_id: int, offset: int, data: bytes) -> None:
    """Writes bytes of a block image; bytes that fall on padding are dropped.

    Args:
        arena: uint8, ``[arena bytes]``, on any device.
        layout: Its layout.
        block_id: The block.
        offset: First byte in the image.
        data: The bytes; the range must lie in the image.
    """
    source = np.frombuffer(data, np.uint8)
    for start, place, size in _pieces(layout, block_id, offset, len(data)):
        target, piece = arena[start : start + size], source[place : place + size]
        if target.is_cpu:
            target.numpy()[:] = piece
        else:
            target.copy_(torch.from_numpy(piece.copy()))


def image_checksum(arena: torch.Tensor, layout: ArenaLayout, block_id: int) -> int:
    """Computes xxh3_64 of a block's states, in the order of its layout, without the padding between them.

    Args:
        arena: uint8, ``[arena bytes]``, on any device.
        layout: Its layout.
        block_id: The block.
    """
    digest = xxhash.xxh3_64()
    source = arena.numpy() if arena.is_cpu else None  # a slice of it is had ten times as fast as one of a tensor
    for start, _, size in _pieces(layout, block_id, 0, layout.block.image_bytes):
        piece = arena[start : start + size].cpu().numpy() if source is None else source[start : start + size]
        digest.update(piece.data)
    return digest.intdigest()


def _shifted(data: bytes, state: StateSpec, rows: int, conv_layout: ConvLayout) -> bytes:
    """Moves the rows of a conv state towards the first."""
    before = np.frombuffer(data, np.uint8).reshape(*state.shape, state.dtype.itemsize)
    after = np.zeros_like(before)
    if conv_layout is ConvLayout.SD:
        after[: len(before) - rows] = before[rows:]
    else:
        after[:, : before.shape[1] - rows] = before[:, rows:]
    return after.tobytes()


def _bytes(region: torch.Tensor) -> bytes:
    return region.cpu().numpy().tobytes()


def _pieces(layout: ArenaLayout, block_id: int, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
    """Cuts a range of an image at tensors: offset in the arena, offset in the range, bytes."""
    for spec in layout.tensors:
        first = max(offset, spec.image_offset)
        end = min(offset + length, spec.image_offset + spec.state.nbytes)
        if first < end:
            start = spec.arena_offset + block_id * spec.block_stride + first - spec.image_offset
            yield start, first - offset, end - first
