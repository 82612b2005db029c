"""Guarantee: copy specs are those of the reference, from tensors and from columns alike."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from statepool.calls.blocks import compute_copy_specs
from statepool.copies import copy_specs
from statepool.errors import (
    BadFieldError,
    BlockIndexOutOfRangeError,
    ColumnLengthMismatchError,
    DsSpecNotContiguousError,
    StatepoolError,
)
from statepool.layout import ArenaLayout, Arrangement, BlockLayout, ConvLayout, Dtype, StateKind, StateSpec
from statepool.shapes import ConvLayoutName
from statepool.torch import MambaCopySpec, get_conv_copy_spec, get_temporal_copy_spec, state_views, torch_dtype

CASES = json.loads((Path(__file__).parents[1] / "data/vectors/copy_specs.json").read_text())
ERRORS: dict[str, type[StatepoolError]] = {
    "unimplemented": DsSpecNotContiguousError,
    "out_of_range": BlockIndexOutOfRangeError,
}


def from_tensor(case: dict[str, Any], state: torch.Tensor) -> MambaCopySpec:
    """Asks the function over a tensor."""
    request = (state, case["block_ids"], case["cur_block_idx"], case["num_accepted_tokens"])
    if case["kind"] == "conv":
        return get_conv_copy_spec(*request, conv_layout=ConvLayout(case["conv_layout"]))
    return get_temporal_copy_spec(*request)


def from_columns(case: dict[str, Any]) -> tuple[int, int]:
    """Asks the columnar function over an arena that holds this one tensor."""
    state = StateSpec("layers.0.s", 0, StateKind(case["kind"]), Dtype(case["dtype"]), tuple(case["block_shape"]))
    block = BlockLayout.of([state], ConvLayout(case["conv_layout"]))
    layout = ArenaLayout(block, case["num_blocks"], Arrangement.LAYER_MAJOR)
    ids = np.array(case["block_ids"])
    columns = (np.array([0, len(ids)]), np.array([case["cur_block_idx"]]), np.array([case["num_accepted_tokens"]]))
    offsets, num_elements = copy_specs(layout, ids, *columns)
    return int(offsets[0, 0]), int(num_elements[0, 0])


@pytest.mark.parametrize("case", CASES)
def test_tensor_specs_equal_the_reference(case: dict[str, Any]) -> None:
    """`get_conv_copy_spec` and `get_temporal_copy_spec` give the reference's address, length or error."""
    state = torch.zeros(case["num_blocks"], *case["block_shape"], dtype=torch_dtype(Dtype(case["dtype"])))
    if case["error"]:
        with pytest.raises(ERRORS[case["error"]]):
            from_tensor(case, state)
        return

    spec = from_tensor(case, state)

    assert spec.start_addr - state.data_ptr() == case["expect"]["offset_bytes"]
    assert spec.num_elements == case["expect"]["num_elements"]


@pytest.mark.parametrize("case", CASES)
def test_columnar_specs_equal_the_reference(case: dict[str, Any]) -> None:
    """`copy_specs` gives the same, as an offset into the arena."""
    if case["error"]:
        with pytest.raises(ERRORS[case["error"]]):
            from_columns(case)
        return

    assert from_columns(case) == (case["expect"]["offset_bytes"], case["expect"]["num_elements"])


@pytest.mark.parametrize("tables", [[3, 1, 4], [[3, 1], [4, 1]]])
def test_block_tables_may_be_tensors(tables: list[Any]) -> None:
    """A tensor of one dimension is one request's table, as a list of the same numbers is."""
    assert compute_copy_specs(torch.tensor(tables), 0, 1, 0).request == compute_copy_specs(tables, 0, 1, 0).request


@pytest.mark.parametrize("conv_layout", [ConvLayout.DS, "DS"])
def test_a_layout_may_be_named(conv_layout: ConvLayoutName) -> None:
    """The name of a conv layout stands for the layout; what is none is refused."""
    state = torch.zeros(4, 8, 5)

    with pytest.raises(DsSpecNotContiguousError):
        get_conv_copy_spec(state, [1], 0, 2, conv_layout=conv_layout)
    assert get_conv_copy_spec(state, [1], 0, 1, conv_layout=conv_layout).num_elements == 40
    with pytest.raises(ValueError, match="conv_layout: must be SD or DS, got 'ds'"):
        get_conv_copy_spec(state, [1], 0, 1, conv_layout="ds")  # type: ignore[arg-type]


def test_batch_equals_tensor_by_tensor() -> None:
    """A batch over many tensors and lists equals asking for each alone."""
    states = [
        StateSpec("layers.0.conv.0", 0, StateKind.CONV, Dtype.BFLOAT16, (5, 8)),
        StateSpec("layers.0.temporal", 0, StateKind.TEMPORAL, Dtype.FLOAT32, (3, 4)),
        StateSpec("layers.1.conv.0", 1, StateKind.CONV, Dtype.FLOAT16, (6, 2)),
    ]
    layout = ArenaLayout(BlockLayout.of(states, ConvLayout.SD), 10)
    arena = torch.zeros(layout.nbytes, dtype=torch.uint8)
    views = state_views(arena, layout)
    lists, cur, accepted = [[3, 1, 4], [1, 5, 9, 2]], [0, 1], [3, 2]

    offsets, num_elements = copy_specs(
        layout, np.concatenate(lists), np.array([0, 3, 7]), np.array(cur), np.array(accepted)
    )

    for request, tensor in np.ndindex(2, 3):
        state = layout.tensors[tensor].state
        args = (views[state.name], lists[request], cur[request], accepted[request])
        conv = state.kind is StateKind.CONV
        spec = get_conv_copy_spec(*args, conv_layout=ConvLayout.SD) if conv else get_temporal_copy_spec(*args)
        assert offsets[request, tensor] == spec.start_addr - arena.data_ptr()
        assert num_elements[request, tensor] == spec.num_elements


@pytest.mark.parametrize("row_offsets", [[], [0], [1, 3], [0, 2, 1, 3], [0, 4]])
def test_lists_must_partition_the_ids(row_offsets: list[int]) -> None:
    """Row offsets that do not rise from 0 to the number of ids are refused by name."""
    layout = ArenaLayout(
        BlockLayout.of([StateSpec("t", 0, StateKind.TEMPORAL, Dtype.FLOAT32, (2,))], ConvLayout.SD), 10
    )
    rows = max(0, len(row_offsets) - 1)

    with pytest.raises(BadFieldError) as refused:
        copy_specs(
            layout, np.array([1, 2, 3]), np.array(row_offsets, np.int64), np.zeros(rows, int), np.ones(rows, int)
        )

    assert refused.value.field == "row_offsets"


def test_columns_of_one_length() -> None:
    """A column that is shorter than the requests is refused by name."""
    layout = ArenaLayout(
        BlockLayout.of([StateSpec("t", 0, StateKind.TEMPORAL, Dtype.FLOAT32, (2,))], ConvLayout.SD), 10
    )

    with pytest.raises(ColumnLengthMismatchError) as refused:
        copy_specs(layout, np.array([1, 2]), np.array([0, 1, 2]), np.array([0]), np.array([1, 1]))

    assert refused.value.field == "cur_block_idx"
