"""Where copies begin and how much they move: copy specs and copy plans, as columns, without torch.

The definitions are the field's own (vLLM's ``mamba_utils``); see `copy_specs`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from statepool.errors import (
    BadFieldError,
    BlockIndexOutOfRangeError,
    ColumnLengthMismatchError,
    DsSpecNotContiguousError,
)
from statepool.layout import ArenaLayout, BlockLayout, ConvLayout, StateKind, StateSpec

Column = NDArray[np.int64]
"""A column of integers, ``[n]``."""


@dataclass(frozen=True, slots=True, eq=False)
class CopyPlan:
    """Copies of one call; all of them see the memory as it was before the call.

    Row i: conv rows ``[bias:]`` of the source go to rows ``[:length - bias]`` of the destination; temporal states come
    whole from the temporal source; opaque states come whole from the source. A source that is its destination with bias
    0 moves nothing.

    Raises:
        ColumnLengthMismatchError: The columns differ in length.
    """

    src_blocks: Column
    """Blocks to copy conv and opaque states from, ``[n]``."""
    dst_blocks: Column
    """Blocks to copy to, each once, ``[n]``."""
    token_biases: Column
    """Rows to shift conv states by, ``[n]``."""
    temporal_src_blocks: Column
    """Blocks to copy temporal states from, ``[n]``."""

    def __post_init__(self) -> None:
        for name in ("src_blocks", "token_biases", "temporal_src_blocks"):
            rows = len(getattr(self, name))
            if rows != len(self):
                raise ColumnLengthMismatchError(f"{name} has {rows} rows, not {len(self)}", field=name)

    def __len__(self) -> int:
        return len(self.dst_blocks)

    def take(self, rows: NDArray[np.bool_]) -> "CopyPlan":
        """Selects rows by a mask, ``[n]``."""
        return CopyPlan(
            self.src_blocks[rows], self.dst_blocks[rows], self.token_biases[rows], self.temporal_src_blocks[rows]
        )


def conv_rows(state: StateSpec, conv_layout: ConvLayout) -> int:
    """Counts the rows (tokens) of a conv state."""
    return state.shape[0] if conv_layout is ConvLayout.SD else state.shape[1]


def max_token_bias(layout: BlockLayout) -> int:
    """Finds the largest bias that leaves a row of every conv state; 0 where there is no conv state to shift."""
    rows = [conv_rows(state, layout.conv_layout) for state in layout.states if state.kind is StateKind.CONV]
    return min(rows) - 1 if rows else 0


def check_plan(plan: CopyPlan, layout: BlockLayout) -> None:
    """Checks the biases of a plan; block ids are the pool's to check.

    Raises:
        BadFieldError: A bias that is negative or leaves nothing of a conv state.
    """
    limit = max_token_bias(layout)
    bad = (plan.token_biases < 0) | (plan.token_biases > limit)
    if bad.any():
        row = int(bad.argmax())
        raise BadFieldError(
            f"token_biases[{row}]: {plan.token_biases[row]} is not 0 to {limit}", field="token_biases", row=row
        )


def copied_bytes(plan: CopyPlan, layout: BlockLayout) -> int:
    """Counts the bytes of states that a plan writes on one rank, padding not counted."""
    biases, moved = plan.token_biases, plan.src_blocks != plan.dst_blocks
    total = 0
    for state in layout.states:
        if state.kind is StateKind.CONV:
            rows = conv_rows(state, layout.conv_layout)
            total += state.nbytes // rows * int((rows - biases)[moved | (biases > 0)].sum())
        else:
            whole = plan.temporal_src_blocks != plan.dst_blocks if state.kind is StateKind.TEMPORAL else moved
            total += state.nbytes * int(np.count_nonzero(whole))
    return total


def copy_specs(
    layout: ArenaLayout,
    block_ids: Column,
    row_offsets: Column,
    cur_block_idx: Column,
    num_accepted_tokens: Column,
) -> tuple[Column, Column]:
    """Computes copy specs of a batch of requests.

    For one request with the list ``ids``, its running index ``cur`` and ``a`` accepted tokens:

    * conv, SD: from row ``a - 1`` of block ``ids[cur]`` to the end of the state;
    * conv, DS: the whole state of block ``ids[cur]``, and only for ``a`` = 1;
    * temporal: the whole state of block ``ids[cur + a - 1]``;
    * opaque: the whole state of block ``ids[cur]``.

    Args:
        layout: The arena.
        block_ids: The lists of all requests, one after the other.
        row_offsets: Start of each list and the end of the last, ``[requests + 1]``.
        cur_block_idx: ``[requests]``.
        num_accepted_tokens: From 1, ``[requests]``.

    Returns:
        Offsets into the arena in bytes and counts of elements, both ``[requests, tensors]`` in the order of
        ``layout.tensors``.

    Raises:
        BadFieldError: `row_offsets` is not a partition of `block_ids`.
        ColumnLengthMismatchError: A column has another length than requests.
        BlockIndexOutOfRangeError: An index past the end of a list, of the pool, or of a conv state; no accepted token.
        DsSpecNotContiguousError: More than one accepted token in conv layout DS.
    """
    starts, lengths = _lists(block_ids, row_offsets)
    _check_length(cur_block_idx, len(starts), "cur_block_idx")
    _check_length(num_accepted_tokens, len(starts), "num_accepted_tokens")
    shift = num_accepted_tokens - 1
    kinds = {state.kind for state in layout.block.states}
    if StateKind.CONV in kinds:
        _check_shift(shift, layout.block)
    _check(shift >= 0, "num_accepted_tokens", num_accepted_tokens)
    last = cur_block_idx + shift if StateKind.TEMPORAL in kinds else cur_block_idx
    _check((cur_block_idx >= 0) & (cur_block_idx < lengths), "cur_block_idx", cur_block_idx)
    _check(last < lengths, "num_accepted_tokens", num_accepted_tokens)
    running, accepted = block_ids[starts + cur_block_idx], block_ids[starts + last]
    for blocks in (running, accepted):
        _check((blocks >= 0) & (blocks < layout.block_count), "block_ids", blocks)
    return _columns(layout, running, accepted, shift)


def _lists(block_ids: Column, row_offsets: Column) -> tuple[Column, Column]:
    lengths = np.diff(row_offsets)
    whole = len(row_offsets) > 0 and row_offsets[0] == 0 and row_offsets[-1] == len(block_ids)
    if not whole or (lengths < 0).any():
        raise BadFieldError(
            f"row_offsets must rise from 0 to the {len(block_ids)} entries of block_ids", field="row_offsets"
        )
    return row_offsets[:-1], lengths


def _columns(layout: ArenaLayout, running: Column, accepted: Column, shift: Column) -> tuple[Column, Column]:
    """Multiplies requests out over tensors: a block (running or accepted) and a number of rows to leave out."""
    states = [spec.state for spec in layout.tensors]
    sd = layout.block.conv_layout is ConvLayout.SD
    base = np.array([spec.arena_offset for spec in layout.tensors], np.int64)
    stride = np.array([spec.block_stride for spec in layout.tensors], np.int64)
    itemsize = np.array([state.dtype.itemsize for state in states], np.int64)
    elements = np.array([state.num_elements for state in states], np.int64)
    row = np.array([state.shape[1] if sd and state.kind is StateKind.CONV else 0 for state in states], np.int64)
    temporal = np.array([state.kind is StateKind.TEMPORAL for state in states])
    blocks = np.where(temporal, accepted[:, None], running[:, None])
    left_out = shift[:, None] * row
    return base + blocks * stride + left_out * itemsize, elements - left_out


def _check_shift(shift: Column, layout: BlockLayout) -> None:
    if layout.conv_layout is ConvLayout.DS:
        if (shift > 0).any():
            raise DsSpecNotContiguousError(
                f"num_accepted_tokens[{int((shift > 0).argmax())}]: several accepted tokens are not one region in DS",
                field="num_accepted_tokens",
            )
        return
    _check(shift <= max_token_bias(layout), "num_accepted_tokens", shift + 1)


def _check(good: NDArray[np.bool_], field: str, values: Column) -> None:
    if not good.all():
        row = int((~good).argmax())
        raise BlockIndexOutOfRangeError(f"{field}[{row}]: {values[row]} is out of range", field=field, row=row)


def _check_length(column: Column, rows: int, field: str) -> None:
    if len(column) != rows:
        raise ColumnLengthMismatchError(f"{field} has {len(column)} rows, not {rows}", field=field)
