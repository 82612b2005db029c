"""The one place where refs, states, layouts and counts turn into messages and back, for both sides."""

from collections.abc import Mapping
from dataclasses import fields
from typing import TypeVar

from statepool.columns import FIXED32, FIXED64, columns_of_message, merge_columns
from statepool.descriptions import PoolUsage
from statepool.errors import BadFieldError, LayoutMismatchError
from statepool.layout import ArenaLayout, Arrangement, BlockLayout, ConvLayout, Dtype, StateKind, StateSpec, TensorSpec
from statepool.packing import pack
from statepool.refs import BlockRefs
from statepool.v1 import pool_pb2
from statepool.v1 import types_pb2 as pb

T = TypeVar("T")

_DTYPES = {dtype: pb.Dtype.Value(f"DTYPE_{dtype.name}") for dtype in Dtype}
_KINDS = {kind: pb.StateKind.Value(f"STATE_KIND_{kind.name}") for kind in StateKind}
_CONV_LAYOUTS = {layout: pb.ConvLayout.Value(f"CONV_LAYOUT_{layout.name}") for layout in ConvLayout}
_ARRANGEMENTS = {arrangement: pb.Arrangement.Value(f"ARRANGEMENT_{arrangement.name}") for arrangement in Arrangement}
_DTYPE_OF: Mapping[int, Dtype] = {value: dtype for dtype, value in _DTYPES.items()}
_KIND_OF: Mapping[int, StateKind] = {value: kind for kind, value in _KINDS.items()}
_CONV_LAYOUT_OF: Mapping[int, ConvLayout] = {value: layout for layout, value in _CONV_LAYOUTS.items()}
_ARRANGEMENT_OF: Mapping[int, Arrangement] = {value: arrangement for arrangement, value in _ARRANGEMENTS.items()}


def refs_to_wire(refs: BlockRefs) -> pb.BlockRefs:
    """Writes refs.

    Raises:
        ValueError: A number that is negative, too large for the wire, or no integer.
    """
    message = pb.BlockRefs()
    ids, generations = pack(refs.block_ids, "block_ids", FIXED32), pack(refs.generations, "generations", FIXED64)
    merge_columns(message, {1: ids, 2: generations})
    return message


def refs_from_wire(message: pb.BlockRefs) -> BlockRefs:
    """Reads refs.

    Raises:
        ValueError: The columns differ in length.
    """
    columns = columns_of_message(message, {1: FIXED32, 2: FIXED64})
    return BlockRefs(columns[1], columns[2])


def dtype_to_wire(dtype: Dtype | None) -> pb.Dtype.ValueType:
    """Writes an element type; None ("auto") is unspecified."""
    return pb.DTYPE_UNSPECIFIED if dtype is None else _DTYPES[dtype]


def dtype_from_wire(value: int, field: str) -> Dtype | None:
    """Reads an element type; unspecified is None.

    Raises:
        BadFieldError: No such type.
    """
    return None if value == pb.DTYPE_UNSPECIFIED else _known(_DTYPE_OF, value, field)


def conv_layout_to_wire(layout: ConvLayout | None) -> pb.ConvLayout.ValueType:
    """Writes a conv layout; None is unspecified."""
    return pb.CONV_LAYOUT_UNSPECIFIED if layout is None else _CONV_LAYOUTS[layout]


def conv_layout_from_wire(value: int, field: str) -> ConvLayout | None:
    """Reads a conv layout; unspecified is None.

    Raises:
        BadFieldError: No such layout.
    """
    return None if value == pb.CONV_LAYOUT_UNSPECIFIED else _known(_CONV_LAYOUT_OF, value, field)


def state_to_wire(state: StateSpec) -> pb.StateSpec:
    """Writes a state."""
    return pb.StateSpec(
        name=state.name,
        layer=state.layer,
        kind=_KINDS[state.kind],
        dtype=_DTYPES[state.dtype],
        shape=state.shape,
    )


def state_from_wire(message: pb.StateSpec, field: str) -> StateSpec:
    """Reads a state.

    Raises:
        BadFieldError: The kind or the dtype is unspecified or unknown.
    """
    return StateSpec(
        message.name,
        message.layer,
        _known(_KIND_OF, message.kind, f"{field}.kind"),
        _known(_DTYPE_OF, message.dtype, f"{field}.dtype"),
        tuple(message.shape),
    )


def block_layout_to_wire(layout: BlockLayout) -> pb.Layout:
    """Writes a block image that has no arena."""
    return pb.Layout(
        fingerprint=layout.fingerprint,
        conv_layout=_CONV_LAYOUTS[layout.conv_layout],
        image_bytes=layout.image_bytes,
        tensors=[
            pb.StateTensor(state=state_to_wire(state), image_offset=offset)
            for state, offset in zip(layout.states, layout.image_offsets, strict=True)
        ],
    )


def arena_layout_to_wire(layout: ArenaLayout) -> pb.Layout:
    """Writes the layout of an arena."""
    message = block_layout_to_wire(layout.block)
    message.block_count = layout.block_count
    message.arrangement = _ARRANGEMENTS[layout.arrangement]
    message.arena_bytes = layout.nbytes
    for tensor, spec in zip(message.tensors, layout.tensors, strict=True):
        _place_to_wire(tensor, spec)
    return message


def block_layout_from_wire(message: pb.Layout) -> BlockLayout:
    """Reads a block image and proves that both sides mean the same bytes.

    Raises:
        LayoutMismatchError: What we build from the states has another fingerprint than the sender's.
    """
    states = tuple(state_from_wire(tensor.state, "layout.tensors") for tensor in message.tensors)
    layout = BlockLayout(states, _known(_CONV_LAYOUT_OF, message.conv_layout, "layout.conv_layout"))
    if layout.fingerprint != message.fingerprint:
        raise LayoutMismatchError(f"the layout reads as {layout.fingerprint}, but says {message.fingerprint}")
    return layout


def arena_layout_from_wire(message: pb.Layout) -> ArenaLayout:
    """Reads the layout of an arena and proves that both sides mean the same bytes.

    Raises:
        LayoutMismatchError: The fingerprint or the place of a tensor is another than the sender's.
    """
    arrangement = _known(_ARRANGEMENT_OF, message.arrangement, "layout.arrangement")
    layout = ArenaLayout(block_layout_from_wire(message), message.block_count, arrangement)
    if arena_layout_to_wire(layout) != message:
        raise LayoutMismatchError("the tensors' places are not those that the arrangement gives")
    return layout


def usage_from_wire(message: pool_pb2.PoolUsage) -> PoolUsage:
    """Reads the counts of a moment."""
    return PoolUsage(**{field.name: getattr(message, field.name) for field in fields(PoolUsage)})


def _place_to_wire(tensor: pb.StateTensor, spec: TensorSpec) -> None:
    tensor.arena_offset = spec.arena_offset
    tensor.block_stride = spec.block_stride
    tensor.max_element_offset = spec.max_element_offset


def _known(table: Mapping[int, T], value: int, field: str) -> T:
    try:
        return table[value]
    except KeyError:
        raise BadFieldError(f"{field}: {value} is not one of {sorted(table)}", field=field) from None
