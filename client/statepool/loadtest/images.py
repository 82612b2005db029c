"""The oracle: what the bytes of a block image must be after a copy, computed on the client with numpy alone."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from statepool.layout import BlockLayout, ConvLayout, StateKind, StateSpec

Image = NDArray[np.uint8]
"""Bytes of one block image, ``[image bytes]``."""


class Oracle:
    """Patterns and copies of block images of one layout."""

    def __init__(self, layout: BlockLayout, seed: int) -> None:
        self._layout = layout
        self._base = np.random.default_rng(seed).integers(0, 2**63, layout.image_bytes // 8, np.uint64)
        self._used = np.zeros(layout.image_bytes, np.bool_)
        for state, offset in self._states():
            self._used[offset : offset + state.nbytes] = True

    def pattern(self, tag: int) -> Image:
        """Makes an image that no other tag has; padding is zero, as the server keeps it."""
        words = self._base ^ np.uint64(tag * 0x9E3779B97F4A7C15 % 2**64)
        return np.where(self._used, words.view(np.uint8), np.uint8(0))

    def copied(self, src: Image, dst: Image, token_bias: int) -> Image:
        """Says what a destination holds after a copy whose temporal source is the source."""
        result = dst.copy()
        for state, offset in self._states():
            place = slice(offset, offset + state.nbytes)
            if state.kind is StateKind.CONV and token_bias:
                result[place] = self._shifted(state, src[place], dst[place], token_bias)
            else:
                result[place] = src[place]
        return result

    def _shifted(self, state: StateSpec, src: Image, dst: Image, token_bias: int) -> Image:
        item = state.dtype.itemsize
        shape = (*state.shape, item)
        source, result = src.reshape(shape), dst.reshape(shape).copy()
        if self._layout.conv_layout is ConvLayout.SD:
            result[: state.shape[0] - token_bias] = source[token_bias:]
        else:
            result[:, : state.shape[1] - token_bias] = source[:, token_bias:]
        return result.reshape(-1)

    def _states(self) -> Iterator[tuple[StateSpec, int]]:
        return zip(self._layout.states, self._layout.image_offsets, strict=True)
