"""Guarantee: what one side puts into a message, the other reads back unchanged, or refuses."""

import struct
from collections.abc import Sequence
from itertools import pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statepool import errors
from statepool.calls.blocks import compute_copy_specs
from statepool.columns import FIXED64, columns_of_message, message_of_columns
from statepool.errors import (
    BY_REASON,
    BadFieldError,
    Code,
    LayoutMismatchError,
    StatepoolError,
)
from statepool.layout import ArenaLayout, Arrangement, BlockLayout, ConvLayout, Dtype, StateKind, StateSpec
from statepool.refs import BlockRefs
from statepool.status import (
    DETAILS_KEY,
    MAX_MESSAGE_BYTES,
    error_from_wire,
    error_of,
    error_to_wire,
    message_of,
    trailers_of,
)
from statepool.v1 import block_pb2, types_pb2
from statepool.wire import (
    arena_layout_from_wire,
    arena_layout_to_wire,
    block_layout_from_wire,
    block_layout_to_wire,
    conv_layout_from_wire,
    conv_layout_to_wire,
    dtype_from_wire,
    dtype_to_wire,
    refs_from_wire,
    refs_to_wire,
    state_from_wire,
    state_to_wire,
)

ERROR_CLASSES = sorted(
    {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, StatepoolError)}
    - {errors.GroupError, errors.DivergedError},  # made by the client
    key=lambda cls: cls.__name__,
)

pairs = st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**63 - 1)), max_size=200)
words = st.text(st.characters(codec="utf-8"), max_size=40)


@st.composite
def states(draw: st.DrawFn, name: str) -> StateSpec:
    """Draws a state of any kind and dtype."""
    kind = draw(st.sampled_from(StateKind))
    dims = (2, 2) if kind is StateKind.CONV else (1, 4)
    shape = draw(st.lists(st.integers(1, 64), min_size=dims[0], max_size=dims[1]))
    return StateSpec(name, draw(st.integers(0, 99)), kind, draw(st.sampled_from(Dtype)), tuple(shape))


@st.composite
def layouts(draw: st.DrawFn) -> ArenaLayout:
    """Draws the layout of an arena."""
    count = draw(st.integers(1, 6))
    block = BlockLayout.of([draw(states(f"state.{i}")) for i in range(count)], draw(st.sampled_from(ConvLayout)))
    return ArenaLayout(block, draw(st.integers(2, 2**20)), draw(st.sampled_from(Arrangement)))


def _refs(rows: Sequence[tuple[int, int]]) -> BlockRefs:
    return BlockRefs.of([row[0] for row in rows], [row[1] for row in rows])


@settings(deadline=None)
@given(pairs)
def test_refs(rows: list[tuple[int, int]]) -> None:
    """Refs come back equal, and other protobuf code reads the same numbers."""
    refs = _refs(rows)

    message = types_pb2.BlockRefs.FromString(refs_to_wire(refs).SerializeToString())

    assert refs_from_wire(message) == refs
    assert list(message.block_ids) == refs.block_ids.tolist()
    assert list(message.generations) == refs.generations.tolist()


@settings(deadline=None)
@given(pairs, st.randoms())
def test_refs_of_a_peer_that_does_not_pack(rows: list[tuple[int, int]], random: Random) -> None:
    """A column may come element by element, mixed with packed pieces and with the other column."""
    fields = [(1, "<I", row[0]) for row in rows], [(2, "<Q", row[1]) for row in rows]
    pieces = [[_unpacked(*field) if i % 3 else _packed(*field) for i, field in enumerate(column)] for column in fields]
    data = b""
    while pieces[0] or pieces[1]:
        column = random.choice([column for column in pieces if column])
        data += column.pop(0)

    assert refs_from_wire(types_pb2.BlockRefs.FromString(data)) == _refs(rows)


def _unpacked(number: int, form: str, value: int) -> bytes:
    wire_type = 5 if form == "<I" else 1
    return bytes([number << 3 | wire_type]) + struct.pack(form, value)


def _packed(number: int, form: str, value: int) -> bytes:
    return bytes([number << 3 | 2, struct.calcsize(form)]) + struct.pack(form, value)


@pytest.mark.parametrize(("block_id", "generation"), [(2**32 + 1, 1), (-1, 1), (1, -1)])
def test_refs_that_would_wrap_around_are_refused(block_id: int, generation: int) -> None:
    """They are never another block's."""
    with pytest.raises(ValueError, match="must be a column of integers from 0"):
        refs_to_wire(BlockRefs.of([block_id], [generation]))


@pytest.mark.parametrize("column", [[1.5], [1.0], ["1"], [True], [2**64]])
def test_refs_that_are_no_integers_are_refused(column: list[object]) -> None:
    """Nothing is cut off."""
    with pytest.raises(ValueError, match="block_ids: must be a column of integers"):
        BlockRefs.of(column, [1])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="generations: must be a column of integers"):
        BlockRefs.of([1], column)  # type: ignore[arg-type]


def test_refs_of_different_lengths_are_refused() -> None:
    """A row without its generation is no ref."""
    with pytest.raises(ValueError, match="columns of one length"):
        refs_from_wire(types_pb2.BlockRefs(block_ids=[1, 2], generations=[1]))


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**63 - 1), max_size=300), st.lists(st.integers(0, 2**63 - 1), max_size=300))
def test_columns(first: list[int], third: list[int]) -> None:
    """Columns come back equal whatever their length, beside columns that are empty and fields that follow."""
    written = {2: np.array(first, np.int64).astype(FIXED64), 4: np.array(third, np.int64).astype(FIXED64)}

    message = message_of_columns(block_pb2.ComputeCopySpecsResponse, written)
    message.tensor_count = 7
    read = columns_of_message(message, {2: FIXED64, 3: FIXED64, 4: FIXED64})

    assert [read[number].tolist() for number in (2, 3, 4)] == [first, [], third]
    assert list(message.start_addrs) == first


def test_numbers_above_63_bits_read_as_negative() -> None:
    """A generation that cannot exist never passes for one that can."""
    message = types_pb2.BlockRefs(block_ids=[1], generations=[2**64 - 1])

    assert refs_from_wire(message).generations.tolist() == [-1]


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 2**32 - 1), max_size=9), min_size=1, max_size=9))
def test_block_tables(tables: list[list[int]]) -> None:
    """A batch of block tables is written as one column and its offsets."""
    request = compute_copy_specs(tables, 0, 1, 0).request

    assert isinstance(request, block_pb2.ComputeCopySpecsRequest)
    offsets = list(request.row_offsets)
    rows = [list(request.block_ids[low:high]) for low, high in pairwise(offsets)]
    assert rows == tables


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), max_size=20))
def test_one_block_table(table: list[int]) -> None:
    """A flat list, or array, is a batch of one."""
    batch = compute_copy_specs([table], 0, 1, 0).request

    assert compute_copy_specs(table, 0, 1, 0).request == batch
    assert compute_copy_specs(np.array(table, np.int64), 0, 1, 0).request == batch
    assert compute_copy_specs([np.array(block_id) for block_id in table], 0, 1, 0).request == batch


@pytest.mark.parametrize("table", [[-1], [2**32], [1.5], [[1.5]], np.ones((2, 2, 2), np.int64)])
def test_block_ids_that_would_wrap_around_are_refused(table: list[int]) -> None:
    """No id is silently written as another one."""
    with pytest.raises(ValueError, match="block_ids"):
        compute_copy_specs(table, 0, 1, 0)


@settings(deadline=None)
@given(states("layers.0.conv.0"))
def test_states(state: StateSpec) -> None:
    """A state comes back equal."""
    assert state_from_wire(state_to_wire(state), "states[0]") == state


@settings(deadline=None)
@given(layouts())
def test_layouts(layout: ArenaLayout) -> None:
    """A layout comes back equal, with or without its arena."""
    assert arena_layout_from_wire(arena_layout_to_wire(layout)) == layout
    assert block_layout_from_wire(block_layout_to_wire(layout.block)) == layout.block


@settings(deadline=None)
@given(layouts())
def test_a_layout_that_means_other_bytes_is_refused(layout: ArenaLayout) -> None:
    """A state, a fingerprint or a place that was changed on the way is noticed."""
    other_dtype, other_print, other_place = (arena_layout_to_wire(layout) for _ in range(3))
    other_dtype.tensors[0].state.layer += 1
    other_print.fingerprint = other_print.fingerprint[::-1] + "0"
    other_place.tensors[0].arena_offset += 256

    for message in (other_dtype, other_print, other_place):
        with pytest.raises(LayoutMismatchError):
            arena_layout_from_wire(message)


@pytest.mark.parametrize("dtype", [None, *Dtype])
def test_dtypes(dtype: Dtype | None) -> None:
    """Every element type, and "auto", comes back."""
    assert dtype_from_wire(dtype_to_wire(dtype), "dtype") is dtype


@pytest.mark.parametrize("layout", [None, *ConvLayout])
def test_conv_layouts(layout: ConvLayout | None) -> None:
    """Every conv layout, and "unspecified", comes back."""
    assert conv_layout_from_wire(conv_layout_to_wire(layout), "conv_layout") is layout


def test_unknown_enum_numbers_are_bad_fields() -> None:
    """A number that a newer peer may send is refused by the name of its field."""
    with pytest.raises(BadFieldError, match=r"conv_dtype: 99 is not one of") as refused:
        dtype_from_wire(99, "conv_dtype")
    assert refused.value.field == "conv_dtype"
    with pytest.raises(BadFieldError, match=r"states\[0\].kind: 0"):
        state_from_wire(types_pb2.StateSpec(name="a", dtype=types_pb2.DTYPE_INT8, shape=[1]), "states[0]")


@pytest.mark.parametrize("cls", ERROR_CLASSES)
@settings(deadline=None)
@given(
    message=words,
    field=words,
    retry_after=st.none() | st.integers(0, 10**7).map(lambda ms: ms / 1000),
    metadata=st.dictionaries(st.sampled_from(["free", "limit", "row"]), st.integers(0, 2**40)),
)
def test_errors(
    cls: type[StatepoolError], message: str, field: str, retry_after: float | None, metadata: dict[str, int]
) -> None:
    """The client gets the class that the server raised, with its message and hints, and the facts of its reason."""
    raised = cls(message, field=field, retry_after=retry_after, **metadata)

    got = error_of(raised.code, message_of(raised), trailers_of(raised))

    assert type(got) is cls
    assert (got.message, got.field, got.retry_after) == (message, field, retry_after)
    assert got.metadata == (raised.metadata if cls.reason else {})


@pytest.mark.parametrize("cls", BY_REASON.values())
def test_errors_inside_messages(cls: type[StatepoolError]) -> None:
    """An error in a stream's message comes back as its class too, with its field, hint and facts."""
    raised = cls("why", field="commits.accepted_tokens", retry_after=0.25, row=3)

    got = error_from_wire(error_to_wire(raised))

    assert (type(got), got.message, got.field, got.retry_after) == (cls, "why", "commits.accepted_tokens", 0.25)
    assert got.metadata == {"row": "3"}


@settings(deadline=None)
@given(st.sampled_from(Code), words, st.binary(max_size=60))
def test_an_error_without_readable_details(code: Code, message: str, details: bytes) -> None:
    """Whatever stands in the details, the status code alone gives the class."""
    bare = error_of(code, message, [])
    garbled = error_of(code, message, [("other", "x"), (DETAILS_KEY, b"\xff" + details)])

    assert type(bare) is type(garbled)
    assert (bare.code if type(bare) is not StatepoolError else code) == code
    assert bare.message == message


@settings(deadline=None)
@given(st.integers(MAX_MESSAGE_BYTES - 3, MAX_MESSAGE_BYTES + 3), st.sampled_from("aé€𝄞"))
def test_long_messages_are_cut_between_characters(length: int, character: str) -> None:
    """A message that does not fit into trailers loses its end and stays text."""
    cut = message_of(StatepoolError(character * length))

    assert len(cut.encode()) <= MAX_MESSAGE_BYTES
    assert cut == character * len(cut)
