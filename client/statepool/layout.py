"""Where each state tensor lies: in a block, and in an arena.

Two steps, one class each:

* `BlockLayout` orders the states of one block on one rank into a *block image*: all temporal (and opaque) states
  first, then all conv states, each at a 256-byte boundary, the whole padded to 256 bytes. The image is what travels
  between processes, and its fingerprint tells whether two processes mean the same bytes.
* `ArenaLayout` places ``block_count`` blocks into one allocation, ``block_major`` (one block is one run of bytes, equal
  to its image) or ``layer_major`` (one tensor is one run of bytes over all blocks), and publishes a `TensorSpec` per
  state tensor, from which any process that maps the arena builds the same views.
"""

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property

ALIGNMENT = 256
"""Bytes; every state tensor starts at a multiple of it (a CUDA allocation's own alignment, and a multiple of 16)."""

MAX_ARENA_BYTES = 2**62
"""Bytes; a larger arena is refused before any product of sizes can leave 64 bits on the other side of a wire."""


class StateKind(StrEnum):
    """What a state tensor is; the copy rules depend on it."""

    CONV = "conv"
    TEMPORAL = "temporal"
    OPAQUE = "opaque"


class ConvLayout(StrEnum):
    """Order of a conv state's two dimensions: SD is ``(len, dim)``, DS is ``(dim, len)``."""

    SD = "SD"
    DS = "DS"


class Arrangement(StrEnum):
    """Order of blocks and tensors in an arena."""

    BLOCK_MAJOR = "block_major"
    LAYER_MAJOR = "layer_major"


class Dtype(StrEnum):
    """Element types of states, by their torch names."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT8_E4M3FN = "float8_e4m3fn"
    FLOAT8_E5M2 = "float8_e5m2"
    INT8 = "int8"
    UINT8 = "uint8"

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return {"float32": 4, "float16": 2, "bfloat16": 2}.get(self.value, 1)


@dataclass(frozen=True, slots=True)
class StateSpec:
    """One state of one layer on one rank, before it has a place."""

    name: str
    """Unique in the block, for example ``layers.3.conv.0``."""
    layer: int
    """Index of the layer in the model, from 0."""
    kind: StateKind
    """Conv, temporal or opaque."""
    dtype: Dtype
    """Element type."""
    shape: tuple[int, ...]
    """Dimensions in one block, in the conv layout of the pool."""

    @property
    def num_elements(self) -> int:
        """Elements in one block."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in one block, without padding."""
        return self.num_elements * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One state tensor of an arena: enough to build its view ``[block_count, *shape]``.

    Element ``[b, i…]`` lies ``arena_offset + b * block_stride + itemsize * (row-major index of i…)`` bytes into the
    arena: the dimensions of one block are contiguous, only the step from block to block differs.
    """

    state: StateSpec
    """What the tensor holds."""
    image_offset: int
    """Bytes from the start of a block image to this state."""
    arena_offset: int
    """Bytes from the start of the arena to this state in block 0."""
    block_stride: int
    """Bytes from one block to the next."""
    block_count: int
    """First dimension of the view."""

    @property
    def view_shape(self) -> tuple[int, ...]:
        """``(block_count, *shape)``."""
        return (self.block_count, *self.state.shape)

    @property
    def view_strides(self) -> tuple[int, ...]:
        """Strides of the view, in elements."""
        inner = [1]
        for size in reversed(self.state.shape[1:]):
            inner.insert(0, inner[0] * size)
        return (self.block_stride // self.state.dtype.itemsize, *inner)

    @property
    def max_element_offset(self) -> int:
        """Largest element offset from the view's first element; a kernel with 32-bit indices needs it below 2**31."""
        return (self.block_count - 1) * (self.block_stride // self.state.dtype.itemsize) + self.state.num_elements - 1


@dataclass(frozen=True, slots=True)
class Run:
    """State tensors of a block that lie side by side, in the image as in the arena, with nothing between them."""

    image_offset: int
    """First byte in the block image."""
    nbytes: int
    """Bytes."""
    arena_offset: int
    """First byte of block 0's in the arena."""
    block_stride: int
    """Bytes from one block's to the next block's."""


def _align(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class BlockLayout:
    """The block image of one rank: every state of one block, in order, with its place.

    Raises:
        ValueError: A state has no positive shape, a name occurs twice, or there is no state at all.
    """

    states: tuple[StateSpec, ...]
    """States in image order: temporal and opaque first, then conv; within a kind in the order given."""
    conv_layout: ConvLayout
    """How the conv shapes are to be read."""

    def __post_init__(self) -> None:
        if not self.states:
            raise ValueError("a layout needs at least one state")
        if len({state.name for state in self.states}) != len(self.states):
            raise ValueError("state names must be unique")
        for state in self.states:
            _check_state(state)
        if self.image_bytes > MAX_ARENA_BYTES:
            raise ValueError(f"one block needs {self.image_bytes} bytes, more than {MAX_ARENA_BYTES}")

    @classmethod
    def of(cls, states: Iterable[StateSpec], conv_layout: ConvLayout) -> "BlockLayout":
        """Orders states into an image: a stable sort that puts conv states last."""
        return cls(tuple(sorted(states, key=lambda state: state.kind is StateKind.CONV)), conv_layout)

    @cached_property
    def image_offsets(self) -> tuple[int, ...]:
        """Byte offset of each state in the image, each a multiple of `ALIGNMENT`."""
        offsets, end = [], 0
        for state in self.states:
            offsets.append(end)
            end = _align(end + state.nbytes)
        return tuple(offsets)

    @cached_property
    def image_bytes(self) -> int:
        """Bytes of one block image, padding included."""
        return _align(self.image_offsets[-1] + self.states[-1].nbytes)

    @cached_property
    def fingerprint(self) -> str:
        """Hex sha256 of the canonical form.

        Two processes with the same fingerprint read the same bytes of an image the same way. Block count and
        arrangement are not part of it: they place images, they do not change them.
        """
        canonical = {
            "conv_layout": self.conv_layout.value,
            "image_bytes": self.image_bytes,
            "states": [
                [state.name, state.layer, state.kind.value, state.dtype.value, list(state.shape), offset]
                for state, offset in zip(self.states, self.image_offsets, strict=True)
            ],
        }
        return hashlib.sha256(json.dumps(canonical, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _check_state(state: StateSpec) -> None:
    if not state.shape or any(size <= 0 for size in state.shape):
        raise ValueError(f"{state.name}: every dimension must be positive, got {list(state.shape)}")
    if state.kind is StateKind.CONV and len(state.shape) != 2:
        raise ValueError(f"{state.name}: a conv state has two dimensions, got {list(state.shape)}")
    if state.layer < 0:
        raise ValueError(f"{state.name}: the layer must not be negative, got {state.layer}")


@dataclass(frozen=True)
class ArenaLayout:
    """``block_count`` blocks of one layout in one allocation.

    Raises:
        ValueError: Fewer than two blocks (block 0 is the null block), or more bytes than `MAX_ARENA_BYTES`.
    """

    block: BlockLayout
    """The image of one block."""
    block_count: int
    """Blocks, the null block included."""
    arrangement: Arrangement = Arrangement.BLOCK_MAJOR
    """Which of the two orders."""

    def __post_init__(self) -> None:
        if self.block_count < 2:
            raise ValueError(f"a pool needs at least 2 blocks (block 0 is the null block), got {self.block_count}")
        if self.nbytes > MAX_ARENA_BYTES:
            raise ValueError(
                f"{self.block_count} blocks of {self.block.image_bytes} bytes need {self.nbytes} bytes, "
                f"more than {MAX_ARENA_BYTES}"
            )

    @cached_property
    def nbytes(self) -> int:
        """Bytes of the whole arena."""
        return _arena_bytes(self.block, self.block_count, self.arrangement)

    @cached_property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """One spec per state tensor, in image order."""
        specs, run = [], 0
        for state, image_offset in zip(self.block.states, self.block.image_offsets, strict=True):
            if self.arrangement is Arrangement.BLOCK_MAJOR:
                place, stride = image_offset, self.block.image_bytes
            else:
                place, stride = run, state.nbytes
                run += _align(self.block_count * state.nbytes)
            specs.append(TensorSpec(state, image_offset, place, stride, self.block_count))
        return tuple(specs)

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """All state tensors, in image order, as few runs of bytes as padding and arrangement allow."""
        runs: list[Run] = []
        for spec in self.tensors:
            run = Run(spec.image_offset, spec.state.nbytes, spec.arena_offset, spec.block_stride)
            if runs and self._adjoin(runs[-1], run):
                former = runs.pop()
                run = replace(former, nbytes=former.nbytes + run.nbytes)
            runs.append(run)
        return tuple(runs)

    def _adjoin(self, former: Run, run: Run) -> bool:
        return self.arrangement is Arrangement.BLOCK_MAJOR and former.image_offset + former.nbytes == run.image_offset


def blocks_that_fit(block: BlockLayout, memory_bytes: int, arrangement: Arrangement = Arrangement.BLOCK_MAJOR) -> int:
    """Counts the blocks, null block included, that fit into a memory budget.

    Args:
        block: The image of one block.
        memory_bytes: Bytes for one rank's arena.
        arrangement: Layer-major pads each tensor once instead of each block.

    Returns:
        The largest ``block_count`` whose arena is larger neither than the budget nor than `MAX_ARENA_BYTES`; 0 where
        not even one block fits.
    """
    budget = min(memory_bytes, MAX_ARENA_BYTES)
    fits, too_many = 0, max(0, budget) // sum(state.nbytes for state in block.states) + 1
    while too_many - fits > 1:  # padding makes the size a staircase, so it is searched, not divided
        middle = (fits + too_many) // 2
        if _arena_bytes(block, middle, arrangement) <= budget:
            fits = middle
        else:
            too_many = middle
    return fits


def _arena_bytes(block: BlockLayout, block_count: int, arrangement: Arrangement) -> int:
    if arrangement is Arrangement.BLOCK_MAJOR:
        return block_count * block.image_bytes
    return sum(_align(block_count * state.nbytes) for state in block.states)
