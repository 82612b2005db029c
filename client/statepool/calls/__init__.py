"""Builders of calls: pure functions from Python values to a `statepool.rpc.Call` or a stream's messages.

Everything that the sync and the async client have in common is here; they only add the I/O. The modules are loaded when
they are first used (PEP 562), so that importing a client costs little more than importing gRPC: the first call loads
numpy.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from statepool.calls import attachments, blocks, images, pool, sequences, sessions, transfers, watching

__all__ = ["attachments", "blocks", "images", "pool", "sequences", "sessions", "transfers", "watching"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")
