"""Kernels of the triton engine: one program copies or zeroes one tile of one state of one block.

Every copy is a shift of flat bytes: byte i of the destination comes from byte i + shift of the source, where shift is
the bias times the bytes of one token. In DS, where tokens are a conv state's inner dimension, each row of the state is
shifted for itself: what would come from the next row is left out.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows", "first_tile", "tile_count"])
def copy_tiles(arena, scratch, plan, rows, tiles, first_tile, tile_count, PART: tl.constexpr, TILE_BYTES: tl.constexpr):
    """Copies one tile for one row of a plan; the grid is rows x tiles.

    Programs of a launch run in any order, so none may write what another reads: a direct copy leaves shifts in place
    out, a copy through scratch has the end of a launch between its reads and its writes. A barrier within one program
    would not do in its stead: on gfx942 it does not wait for the loads of other waves.

    Args:
        arena: uint8, ``[arena bytes]``.
        scratch: uint8, ``[rows * tile_count * TILE_BYTES]``; a direct copy has no use for it.
        plan: int64, ``[4, rows]``: sources, destinations, biases, temporal sources.
        rows: Rows of the plan.
        tiles: int64, ``[tiles, 7]``, see `statepool.torch.tiles.tile_table`.
        first_tile: First tile of this launch.
        tile_count: Tiles of this launch.
        PART: ``"direct"``, ``"gather"`` (sources to scratch) or ``"scatter"`` (scratch to destinations).
        TILE_BYTES: A power of two from 32.
    """
    program = tl.program_id(0)
    row = program // tile_count
    offset, stride, nbytes, start, token_bytes, row_bytes, source_column = _tile(
        tiles + (first_tile + program % tile_count) * 7
    )
    src = tl.load(plan + source_column * rows + row)
    dst = tl.load(plan + rows + row)
    shift = tl.load(plan + 2 * rows + row) * token_bytes
    source = arena + offset + src * stride + start + shift
    target = arena + offset + dst * stride + start
    slot = scratch + program.to(tl.int64) * TILE_BYTES
    if PART == "gather":
        target = slot
    if PART == "scatter":
        source = slot
    moving = src != dst
    if PART != "direct":
        moving = moving | (shift > 0)
    count = tl.minimum(nbytes - shift - start, TILE_BYTES).to(tl.int32)
    if moving & (count > 0):
        strided = (row_bytes > 0) & (shift > 0)
        congruent = ((source.to(tl.int64) - target.to(tl.int64)) & 15) == 0
        if congruent & (not strided):
            _copy_vectors(source, target, count, TILE_BYTES)
        else:
            row_length = tl.where(strided, row_bytes, 1).to(tl.int32)
            kept = tl.where(strided, row_bytes - shift, 1).to(tl.int32)
            _copy_bytes(source, target, count, (start % row_length).to(tl.int32), row_length, kept, TILE_BYTES)


@triton.jit(do_not_specialize=["tile_count"])
def zero_tiles(arena, block_ids, tiles, tile_count, TILE_BYTES: tl.constexpr):
    """Zeroes one tile of one block; the grid is blocks x tiles.

    Args:
        arena: uint8, ``[arena bytes]``.
        block_ids: int64, ``[blocks]``.
        tiles: int64, ``[tiles, 7]``.
        tile_count: All tiles.
        TILE_BYTES: A power of two from 32.
    """
    program = tl.program_id(0)
    offset, stride, nbytes, start, _, _, _ = _tile(tiles + program % tile_count * 7)
    target = arena + offset + tl.load(block_ids + program // tile_count) * stride + start
    before, words, edge, is_edge = _split(target, tl.minimum(nbytes - start, TILE_BYTES).to(tl.int32))
    lane = tl.arange(0, TILE_BYTES // 8)
    tl.store(_words(target + before) + lane, 0, mask=lane < words)
    tl.store(target + edge, 0, mask=is_edge)


@triton.jit
def _tile(entry):
    """Reads one row of the table of tiles."""
    return (
        tl.load(entry),
        tl.load(entry + 1),
        tl.load(entry + 2),
        tl.load(entry + 3),
        tl.load(entry + 4),
        tl.load(entry + 5),
        tl.load(entry + 6),
    )


@triton.jit
def _copy_vectors(source, target, count, TILE_BYTES: tl.constexpr):
    """Copies up to a tile between addresses that are the same modulo 16, 16 bytes per thread and access."""
    before, words, edge, is_edge = _split(target, count)
    lane = tl.arange(0, TILE_BYTES // 8)
    body = tl.load(_words(source + before) + lane, mask=lane < words)
    edges = tl.load(source + edge, mask=is_edge)
    tl.store(_words(target + before) + lane, body, mask=lane < words)
    tl.store(target + edge, edges, mask=is_edge)


@triton.jit
def _copy_bytes(source, target, count, place, row_length, kept, TILE_BYTES: tl.constexpr):
    """Copies up to a tile byte by byte, of each row its first `kept` bytes; `place` is where in a row it begins."""
    # As many lanes as the vectors have would make the compiler arrange both alike, and one of them badly.
    for first in range(0, count, TILE_BYTES // 16):
        lane = first + tl.arange(0, TILE_BYTES // 16)
        wanted = (lane < count) & ((place + lane) % row_length < kept)
        tl.store(target + lane, tl.load(source + lane, mask=wanted), mask=wanted)


@triton.jit
def _split(address, count):
    """Splits bytes into 16-byte vectors and the up to 15 bytes before and after them.

    Returns:
        Bytes before the vectors, 8-byte words in the vectors, and offsets of the other bytes ``[32]`` with their mask.
    """
    before = tl.minimum(-address.to(tl.int64) & 15, count).to(tl.int32)
    words = (count - before) // 16 * 2
    lane = tl.arange(0, 32)
    after = before + words * 8 + lane - 16
    return before, words, tl.where(lane < 16, lane, after), tl.where(lane < 16, lane < before, after < count)


@triton.jit
def _words(address):
    """Casts an address that is a multiple of 16 to a pointer to 8-byte words, two of which make one access."""
    return tl.multiple_of(address.to(tl.pointer_type(tl.int64)), 16)


INTERPRETED = not isinstance(copy_tiles, triton.JITFunction)
"""Whether Triton's interpreter runs the kernels, in host memory: TRITON_INTERPRET was set when they were loaded."""
