"""Guarantee: a block image read or written at any offset holds the same bytes in every arrangement."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statepool.host import Bytes, Span, read_image, write_image
from statepool.layout import Arrangement, ConvLayout
from support.arenas import layout_of, padding


def reading(arena: Bytes) -> Span:
    """Reads an arena."""
    return lambda start, nbytes: arena[start : start + nbytes]


def writing(arena: Bytes) -> Callable[[int, Bytes], None]:
    """Writes into an arena."""

    def write(start: int, data: Bytes) -> None:
        arena[start : start + len(data)] = data

    return write


@pytest.mark.parametrize("arrangement", list(Arrangement))
@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_what_is_written_is_read(arrangement: Arrangement, data: st.DataObject) -> None:
    """Bytes written at any range read back equal where there is state, and as zero on padding."""
    layout = layout_of(ConvLayout.SD, arrangement)
    arena = np.zeros(layout.nbytes, np.uint8)
    offset = data.draw(st.integers(0, layout.block.image_bytes))
    length = data.draw(st.integers(0, layout.block.image_bytes - offset))
    written = np.random.default_rng(length).integers(1, 256, length, np.uint8).tobytes()

    write_image(writing(arena), layout, 3, offset, written)

    used = np.zeros(layout.block.image_bytes, np.bool_)
    for state, start in zip(layout.block.states, layout.block.image_offsets, strict=True):
        used[start : start + state.nbytes] = True
    expected = np.frombuffer(written, np.uint8) * used[offset : offset + length]
    assert read_image(reading(arena), layout, 3, offset, length) == expected.tobytes()
    assert not arena[padding(layout)].any()


def test_images_do_not_depend_on_the_arrangement() -> None:
    """The image of a block is the same in both arrangements, so that it can travel between them."""
    layouts = [layout_of(ConvLayout.DS, arrangement) for arrangement in Arrangement]
    written = np.random.default_rng(1).integers(1, 256, layouts[0].block.image_bytes, np.uint8).tobytes()
    images = []

    for layout in layouts:
        arena = np.zeros(layout.nbytes, np.uint8)
        write_image(writing(arena), layout, 2, 0, written)
        images.append(read_image(reading(arena), layout, 2, 0, layout.block.image_bytes))

    assert images[0] == images[1]
    assert layouts[0].block.fingerprint == layouts[1].block.fingerprint
