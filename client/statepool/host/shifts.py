"""Copies of one state of one block, with the rows that a conv state leaves out."""

from statepool.host.regions import Bytes
from statepool.layout import ConvLayout, StateSpec


def copy_shifted(source: Bytes, destination: Bytes, state: StateSpec, rows: int, conv_layout: ConvLayout) -> None:
    """Copies a state, the rows of a conv state moved towards the first.

    Args:
        source: The state's bytes; not those of the destination, if any rows are left out.
        destination: Where they go; the places of rows that have none coming keep what they hold.
        state: The state.
        rows: Rows that are left out from the first on; 0 for anything but a conv state.
        conv_layout: How conv states lie.
    """
    if not rows:
        destination[:] = source
    elif conv_layout is ConvLayout.SD:
        left_out = rows * (state.nbytes // state.shape[0])
        destination[: len(source) - left_out] = source[left_out:]
    else:
        channels, left_out = state.shape[0], rows * state.dtype.itemsize
        lines = destination.reshape(channels, -1)
        lines[:, : lines.shape[1] - left_out] = source.reshape(channels, -1)[:, left_out:]
