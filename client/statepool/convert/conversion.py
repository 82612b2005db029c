"""Plans and carries out the conversion of block images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statepool.convert.segments import Segment, conv_segments
from statepool.convert.shares import Share, shares
from statepool.descriptions import Pool
from statepool.errors import LayoutMismatchError
from statepool.layout import BlockLayout, ConvLayout, StateKind, StateSpec
from statepool.shapes import FAMILIES

Image = NDArray[np.uint8]
"""Bytes of a block image, ``[image bytes]``."""

Elements = NDArray[Any]
"""Elements of any type, as unsigned integers of their size."""

_ELEMENTS = {1: np.uint8, 2: np.uint16, 4: np.uint32}


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStates:
    """What the states of a pool are."""

    layout: BlockLayout
    """Image of one rank."""
    tp_size: int
    """Tensor-parallel ranks of the model."""
    num_spec: int
    """Speculative tokens."""
    family: str
    """Family of the model, or "custom"."""
    parameters: Mapping[str, int]
    """Its parameters."""

    @classmethod
    def of(cls, pool: Pool) -> "PoolStates":
        """Takes them from the description of a pool."""
        return cls(
            layout=pool.layout.block,
            tp_size=pool.tp_size,
            num_spec=pool.num_spec,
            family=pool.family,
            parameters=pool.family_parameters,
        )

    def spec_rows(self) -> int:
        """Counts the rows of each conv state that are there for drafted tokens."""
        if self.family == "custom":
            return self.parameters.get("num_spec", 0)
        return self.num_spec if FAMILIES[self.family].extends_conv_states else 0


@dataclass(frozen=True, slots=True)
class _Move:
    """Part of a state of the source that becomes part of one of the target."""

    source: int
    target: int
    share: Share
    rows: int


class Conversion:
    """Turns images of one pool into images of another.

    Only what a state is made of is carried over: rows of conv states that are there for drafted tokens come out zero,
    unless the pools are alike.
    """

    def __init__(self, source: BlockLayout, target: BlockLayout, moves: Mapping[int, Sequence[_Move]]) -> None:
        self._source = source
        self._target = target
        self._moves = moves

    def source_ranks(self, target_rank: int) -> list[int]:
        """Lists the ranks of the source whose images a rank of the target needs, ascending."""
        return sorted({move.share.source_rank for move in self._moves[target_rank]})

    def place(self, source_rank: int, image: Image, target_rank: int, into: Image) -> None:
        """Copies the parts of a source rank's image that belong into a target rank's image.

        Args:
            source_rank: The rank of the source.
            image: Its image, ``[image bytes of the source]``.
            target_rank: The rank of the target.
            into: Its image, ``[image bytes of the target]``, zero where nothing was put yet.
        """
        for move in self._moves[target_rank]:
            if move.share.source_rank == source_rank:
                have = _elements(image, self._source, move.source)
                want = _elements(into, self._target, move.target)
                source, target, size = move.share.source_start, move.share.target_start, move.share.size
                want[target : target + size, : move.rows] = have[source : source + size, : move.rows]


def plan_conversion(source: PoolStates, target: PoolStates) -> Conversion:
    """Plans how states of one pool become those of another.

    The model must be the same; speculative tokens, the order of conv dimensions and the tensor-parallel size may
    differ, the last only for families whose division among ranks is defined.

    Args:
        source: The states that there are.
        target: Those that are wanted.

    Raises:
        LayoutMismatchError: There is no such conversion; the message says why.
    """
    try:
        _check_same_model(source, target)
        moves = {rank: _moves(source, target, rank) for rank in range(target.tp_size)}
    except ValueError as error:
        raise LayoutMismatchError(f"states cannot be converted: {error}", field="source") from error
    return Conversion(source.layout, target.layout, moves)


def _check_same_model(source: PoolStates, target: PoolStates) -> None:
    if (source.family, _model(source)) != (target.family, _model(target)):
        raise ValueError(f"{source.family} {_model(source)} is not {target.family} {_model(target)}")
    have, want = ([(s.name, s.layer, s.kind, s.dtype) for s in p.layout.states] for p in (source, target))
    if sorted(have) != sorted(want):
        differing = sorted(set(have) ^ set(want))
        raise ValueError(f"the pools have different states, {differing[0][0]} among them")


def _model(pool: PoolStates) -> dict[str, int]:
    return {name: value for name, value in pool.parameters.items() if pool.family != "custom" or name != "num_spec"}


def _moves(source: PoolStates, target: PoolStates, target_rank: int) -> list[_Move]:
    places = {state.name: index for index, state in enumerate(source.layout.states)}
    conv_states: dict[int, int] = {}
    moves = []
    for index, want in enumerate(target.layout.states):
        place = places[want.name]
        have = source.layout.states[place]
        nth = conv_states.get(want.layer, 0)
        conv_states[want.layer] = nth + (want.kind is StateKind.CONV)
        rows = _rows(source, target, have, want)
        moves += [_Move(place, index, run, rows) for run in _runs(source, target, have, want, nth, target_rank)]
    return moves


def _runs(
    source: PoolStates, target: PoolStates, have: StateSpec, want: StateSpec, nth: int, target_rank: int
) -> list[Share]:
    dims = [_dim(state, pool.layout) for state, pool in ((have, source), (want, target))]
    if source.tp_size == target.tp_size:
        if dims[0] != dims[1]:
            raise ValueError(f"{want.name}: dimensions of {dims[0]} and {dims[1]}")
        return [Share(target_rank, 0, 0, dims[0])]
    held, wanted = (_segments(pool, want.kind, dim, nth) for pool, dim in ((source, dims[0]), (target, dims[1])))
    return list(shares(held, wanted, source.tp_size, target.tp_size, target_rank))


def _segments(pool: PoolStates, kind: StateKind, dim: int, nth: int) -> tuple[Segment, ...]:
    """Tells what the divided dimension of a state is made of; temporal states are divided by heads (or channels)."""
    if kind is StateKind.OPAQUE or pool.family == "custom":
        raise ValueError(f"how {kind} states of {pool.family} are divided among ranks is not known")
    if kind is StateKind.TEMPORAL:
        return (Segment(dim * pool.tp_size),)
    parts = conv_segments(pool.family, pool.parameters, nth, pool.tp_size)
    if sum(part.share(pool.tp_size) for part in parts) != dim:
        raise ValueError(f"a conv state of {dim} on one of {pool.tp_size} ranks is not that of {pool.family}")
    return parts


def _rows(source: PoolStates, target: PoolStates, have: StateSpec, want: StateSpec) -> int:
    """Counts what stands beside each element of the divided dimension, and is carried over."""
    if want.kind is not StateKind.CONV:
        if have.shape[1:] != want.shape[1:]:
            raise ValueError(f"{want.name}: {list(have.shape)} and {list(want.shape)}")
        return want.num_elements // want.shape[0]
    lengths = [
        state.num_elements // _dim(state, pool.layout) - (0 if source == target else pool.spec_rows())
        for state, pool in ((have, source), (want, target))
    ]
    if lengths[0] != lengths[1]:
        raise ValueError(f"{want.name}: kernels of {lengths[0]} and {lengths[1]} rows")
    return lengths[0]


def _dim(state: StateSpec, layout: BlockLayout) -> int:
    """Tells the dimension that is divided among ranks."""
    is_last = state.kind is StateKind.CONV and layout.conv_layout is ConvLayout.SD
    return state.shape[1] if is_last else state.shape[0]


def _elements(image: Image, layout: BlockLayout, index: int) -> Elements:
    """Views a state in an image with the divided dimension first, ``[dim, elements beside it]``."""
    state, start = layout.states[index], layout.image_offsets[index]
    elements = image[start : start + state.nbytes].view(_ELEMENTS[state.dtype.itemsize])
    if state.kind is StateKind.CONV and layout.conv_layout is ConvLayout.SD:
        return elements.reshape(state.shape).T
    return elements.reshape(state.shape[0], -1)
