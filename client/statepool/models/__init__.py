"""From a model's ``config.json`` to the states it keeps and their layout in a block.

`read_model_config` (or `parse_model_config`, from a mapping) finds the family, its parameters and the state layers;
`model_layout` turns them into the `BlockLayout` of one tensor-parallel rank. An architecture that is not known here
lists its states itself: ``{"model_type": "custom", "states": [...]}``, or `custom_layout`.
"""

from statepool.models.architectures import MODEL_TYPES
from statepool.models.custom import custom_layout
from statepool.models.files import bundled_models, find_model_config, read_model_config
from statepool.models.layouts import model_layout
from statepool.models.parse import parse_model_config
from statepool.models.states import ModelStates

__all__ = [
    "MODEL_TYPES",
    "ModelStates",
    "bundled_models",
    "custom_layout",
    "find_model_config",
    "model_layout",
    "parse_model_config",
    "read_model_config",
]
