"""Disaggregation: prefill in one place, decode in another.

`move` and `move_async` take a state from the pool of one server to that of another; a `Router` sends requests where
most of their prompt is known, and moves their states to where they are decoded. A `PrefixDirectory` follows what
several servers have, so that it is looked up in memory.
"""

from statepool.disagg.async_directory import AsyncPrefixDirectory
from statepool.disagg.async_moves import move_async
from statepool.disagg.directory import PrefixDirectory
from statepool.disagg.moves import move
from statepool.disagg.prefixes import DirectoryHit, FollowedServer
from statepool.disagg.router import DecodeWorker, PrefillWorker, Request, Router
from statepool.disagg.states import Moved, Prefix, PrefixNotFoundError, Via

__all__ = [
    "AsyncPrefixDirectory",
    "DecodeWorker",
    "DirectoryHit",
    "FollowedServer",
    "Moved",
    "PrefillWorker",
    "Prefix",
    "PrefixDirectory",
    "PrefixNotFoundError",
    "Request",
    "Router",
    "Via",
    "move",
    "move_async",
]
