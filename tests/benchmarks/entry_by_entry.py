"""Planning copies as an engine does it in its own process: one request, layer and state after the other.

What a step over the wire is compared with. For every request that enters its next column, the copy spec of each state
tensor of each layer is computed, and its source address, destination address and size go into lists.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from statepool.torch import MambaStateCopyFunc, get_conv_copy_spec, get_temporal_copy_spec

COPY_FUNCTIONS: tuple[MambaStateCopyFunc, ...] = (get_conv_copy_spec, get_temporal_copy_spec)
"""One for each state of a layer."""


@dataclass
class Request:
    """One sequence of an engine."""

    block_ids: list[int]
    """Its block table."""
    column: int
    """Running column."""
    num_accepted: int
    """Tokens accepted last."""


def plan(
    requests: Sequence[Request], layers: Sequence[Sequence[torch.Tensor]]
) -> tuple[list[int], list[int], list[int]]:
    """Plans the copies of a step in which every request enters its next column.

    Args:
        requests: The batch.
        layers: For each layer its states, ``[block_count, *shape]``.

    Returns:
        Source addresses, destination addresses, and bytes.
    """
    sources: list[int] = []
    destinations: list[int] = []
    sizes: list[int] = []
    for request in requests:
        target = request.column + 1
        for states in layers:
            for state, copy_function in zip(states, COPY_FUNCTIONS, strict=True):
                spec = copy_function(state, request.block_ids, request.column, request.num_accepted)
                sources.append(spec.start_addr)
                destinations.append(state[request.block_ids[target]].data_ptr())
                sizes.append(spec.num_elements * state.element_size())
    return sources, destinations, sizes
