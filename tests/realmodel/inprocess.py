"""Worker and copy engine over one arena of this process."""

import itertools

import torch

from realmodel.models import TinyModel
from realmodel.runner import StateRunner
from statepool.layout import ArenaLayout, Arrangement, ConvLayout
from statepool.torch import ENGINES, CopyEngine, state_views

BLOCK_COUNT = 40
PLACEMENTS = tuple(itertools.product(ConvLayout, Arrangement))
"""Every way to lay states out in an arena."""
Placement = tuple[ConvLayout, Arrangement]


def in_process(
    model: TinyModel, placement: Placement, num_spec: int = 0, engine: str = "host"
) -> tuple[StateRunner, CopyEngine]:
    """Makes a runner and an engine over `BLOCK_COUNT` blocks.

    The arena is full of NaN, so that a state which is read but was never written shows in every logit after it.
    """
    conv_layout, arrangement = placement
    layout = ArenaLayout(model.layout(num_spec, conv_layout), BLOCK_COUNT, arrangement)
    arena = torch.full((layout.nbytes,), 0xFF, dtype=torch.uint8)
    return StateRunner(model, state_views(arena, layout), layout.block), ENGINES[engine](arena, layout)
