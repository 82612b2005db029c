"""The oracle of the align workload: what every byte of a state must be after any tokens, as if a model had run.

States are made up from the *digest* of all tokens that they have seen, so two states are equal where the tokens are. A
convolution keeps its last inputs: its window after n tokens has a row for each of the last prefixes, the longest last.
Temporal states are one pattern of the whole prefix. Before the first token all is zero; so are opaque states
at any time.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from statepool.copies import conv_rows
from statepool.layout import BlockLayout, ConvLayout, StateKind, StateSpec
from statepool.loadtest.images import Image

NO_TOKENS = 0
"""Digest of no tokens: of the state that is all zero."""
POISON = 0xA5
"""What a pass leaves in conv rows that are no part of a state, so that whoever takes them for one is found out."""


def extend_digests(digests: list[int], token_ids: Iterable[int]) -> None:
    """Appends the digest of every prefix that ends in one of these tokens; the list begins with `NO_TOKENS`."""
    for token in token_ids:
        seen = digests[-1].to_bytes(8, "little") + token.to_bytes(4, "little")
        digests.append(int.from_bytes(blake2b(seen, digest_size=8).digest(), "little") | 1)


@dataclass(frozen=True, slots=True)
class _Conv:
    """A conv state and where it lies."""

    state: StateSpec
    place: slice
    """Its bytes in an image."""
    window: int
    """Rows that are a state; the pool has more of them, for speculation."""
    inputs: slice
    """Its bytes in the inputs that all conv states get from one token."""
    conv_layout: ConvLayout

    def rows(self, image: Image) -> NDArray[np.uint8]:
        """Views the state by tokens, ``[rows, dim, bytes of an element]``."""
        values = image[self.place].reshape(*self.state.shape, self.state.dtype.itemsize)
        return values if self.conv_layout is ConvLayout.SD else values.swapaxes(0, 1)


class PrefixStates:
    """The states of a made-up model, in blocks of one layout.

    Attributes:
        conv_offset: Where in an image the conv states begin; all others lie before it.
    """

    def __init__(self, layout: BlockLayout, num_spec: int, seed: int) -> None:
        """Makes the model up.

        Args:
            layout: The block image.
            num_spec: Rows of each conv state that are there for speculation, ``Pool.num_spec``.
            seed: Another seed makes another model.
        """
        random = np.random.default_rng(seed)
        self._image_bytes = layout.image_bytes
        self._places = list(_places(layout))
        self._convs = list(_convs(layout, num_spec))
        self._max_window = max((conv.window for conv in self._convs), default=0)
        self.conv_offset = self._convs[0].place.start if self._convs else layout.image_bytes
        self._temporal = random.integers(0, 2**63, self.conv_offset // 8, np.uint64)
        self._inputs = random.integers(0, 2**63, self._convs[-1].inputs.stop // 8 + 1 if self._convs else 0, np.uint64)
        is_temporal = np.zeros(self.conv_offset, np.uint8)
        for state, place in self._places:
            if state.kind is StateKind.TEMPORAL:
                is_temporal[place] = 0xFF
        self._is_temporal = is_temporal.view(np.uint64)

    def after_pass(self, digests: Sequence[int], num_tokens: int, num_drafts: int) -> NDArray[np.uint8]:
        """Makes what a pass leaves in the running block and in those after it.

        If ``a`` tokens are accepted, the windows begin at row ``a - 1`` of the first block, and the temporal states are
        those of block ``a - 1``.

        Args:
            digests: Of all prefixes of the tokens, the drafts among them, from no tokens on.
            num_tokens: Tokens that the state has seen if no draft is accepted.
            num_drafts: Drafts of the pass.

        Returns:
            Images, ``[1 + num_drafts, image bytes]``.
        """
        images = np.zeros((1 + num_drafts, self._image_bytes), np.uint8)
        for drafts, image in enumerate(images):
            image[: self.conv_offset] = self._temporal_after(digests[num_tokens + drafts])
        inputs = self._last_inputs(digests, num_tokens + num_drafts, self._max_window + num_drafts)
        for conv in self._convs:
            images[:, conv.place] = POISON
            rows = conv.rows(images[0])
            used = conv.window + num_drafts
            rows[:used] = inputs[len(inputs) - used :, conv.inputs].reshape(used, *rows.shape[1:])
        return images

    def difference(self, image: Image, digests: Sequence[int], num_tokens: int, num_accepted: int) -> str:
        """Compares every byte of a state; before the first token, every byte of the block's tensors.

        Args:
            image: Conv states of the running block, and all others of the block ``num_accepted - 1`` after it.
            digests: Of all prefixes of the tokens, from no tokens on.
            num_tokens: Tokens that the state has seen.
            num_accepted: Where the windows begin: at row ``num_accepted - 1``.

        Returns:
            Name of a state that is not what it must be; empty: every byte is right.
        """
        if num_tokens == 0:
            return next((state.name for state, place in self._places if image[place].any()), "")
        temporal = self._temporal_after(digests[num_tokens])
        for state, place in self._places:
            if state.kind is not StateKind.CONV and not np.array_equal(image[place], temporal[place]):
                return state.name
        inputs = self._last_inputs(digests, num_tokens, self._max_window)
        for conv in self._convs:
            window = conv.rows(image)[num_accepted - 1 :][: conv.window]
            expected = inputs[len(inputs) - conv.window :, conv.inputs]
            if not np.array_equal(window.reshape(expected.shape), expected):
                return conv.state.name
        return ""

    def _temporal_after(self, digest: int) -> Image:
        if digest == NO_TOKENS:
            return np.zeros(self.conv_offset, np.uint8)
        return ((self._temporal ^ np.uint64(digest)) & self._is_temporal).view(np.uint8)

    def _last_inputs(self, digests: Sequence[int], num_tokens: int, count: int) -> NDArray[np.uint8]:
        """Makes the inputs of the last tokens, zero before the first one, ``[count, bytes]``."""
        inputs = np.zeros((count, self._inputs.nbytes), np.uint8)
        for row, seen in enumerate(range(num_tokens - count + 1, num_tokens + 1)):
            if seen > 0:
                inputs[row] = (self._inputs ^ np.uint64(digests[seen])).view(np.uint8)
        return inputs


def _places(layout: BlockLayout) -> Iterator[tuple[StateSpec, slice]]:
    """Yields each state and its bytes in an image."""
    for state, offset in zip(layout.states, layout.image_offsets, strict=True):
        yield state, slice(offset, offset + state.nbytes)


def _convs(layout: BlockLayout, num_spec: int) -> Iterator[_Conv]:
    start = 0
    for state, place in _places(layout):
        if state.kind is StateKind.CONV:
            rows = conv_rows(state, layout.conv_layout)
            inputs = slice(start, start + state.nbytes // rows)
            start = inputs.stop
            yield _Conv(state, place, rows - num_spec, inputs, layout.conv_layout)
