"""A pool of nine blocks with two sessions, and short ways to ask it."""

from collections.abc import Sequence

import numpy as np

from statepool.refs import BlockRefs
from statepool_server.answers import CommitResult
from statepool_server.events import Event
from statepool_server.pool import Pool, PoolConfig

BLOCK_COUNT = 10
BLOCK_TOKENS = 4
ALICE = (1, 1)
BOB = (2, 1)


def small_pool(events: list[Event] | None = None) -> Pool:
    """Builds the pool; its events go to a list."""
    pool = Pool(
        PoolConfig(block_count=BLOCK_COUNT, block_tokens=BLOCK_TOKENS), None if events is None else events.append
    )
    pool.create_session("alice", 100, False, 0)
    pool.create_session("bob", 200, False, 0)
    return pool


def ids(refs: BlockRefs) -> list[int]:
    """Lists block ids."""
    ids: list[int] = refs.block_ids.tolist()
    return ids


def commit(
    pool: Pool, session: tuple[int, int], refs: BlockRefs, hashes: Sequence[bytes], namespace: str = "m"
) -> CommitResult:
    """Commits blocks that are written through the first boundary."""
    tokens = np.full(len(refs), BLOCK_TOKENS, np.int64)
    return pool.commit(*session, refs, namespace, hashes, tokens, tokens)


def cached(pool: Pool, *hashes: bytes) -> BlockRefs:
    """Makes evictable blocks with these hashes, the first the least recently used."""
    refs = pool.allocate(*ALICE, len(hashes))
    commit(pool, ALICE, refs, hashes)
    pool.free(*ALICE, refs)
    return refs
