"""States as torch tensors: the attached worker's side, copy specs in the field's own form, views, engines that copy.

Needs the extra ``statepool[torch]``; nothing else in the client imports torch.
"""

from statepool.host import CopyEngine
from statepool.torch.attached import AttachedPool, attach
from statepool.torch.engine import ENGINES, EngineFactory, ReferenceEngine
from statepool.torch.specs import MambaCopySpec, MambaStateCopyFunc, get_conv_copy_spec, get_temporal_copy_spec
from statepool.torch.views import state_views, torch_dtype

__all__ = [
    "ENGINES",
    "AttachedPool",
    "CopyEngine",
    "EngineFactory",
    "MambaCopySpec",
    "MambaStateCopyFunc",
    "ReferenceEngine",
    "attach",
    "get_conv_copy_spec",
    "get_temporal_copy_spec",
    "state_views",
    "torch_dtype",
]
