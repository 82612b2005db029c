"""Disaggregation: prefill in one place, decode in another.

`move` and `move_async` take a state from the pool of one server to that of another; a `Router` sends requests where
most of their prompt is known, and moves their states to where they are decoded.
"""

from statepool.disagg.async_moves import move_async
from statepool.disagg.moves import move
from statepool.disagg.router import DecodeWorker, PrefillWorker, Request, Router
from statepool.disagg.states import Moved, Prefix, PrefixNotFoundError, Via

__all__ = [
    "DecodeWorker",
    "Moved",
    "PrefillWorker",
    "Prefix",
    "PrefixNotFoundError",
    "Request",
    "Router",
    "Via",
    "move",
    "move_async",
]
