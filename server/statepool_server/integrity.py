"""Proves that a pool's columns, counters and indexes tell one story."""

import numpy as np

from statepool_server.blocks import BlockState
from statepool_server.holdings import NOBODY
from statepool_server.recency import Ids
from statepool_server.view import PoolView


class IntegrityError(RuntimeError):
    """The pool contradicts itself; the message says how."""


def check_integrity(pool: PoolView) -> None:
    """Checks conservation: every block in exactly one place, and every count equal to what it counts.

    Takes time in proportion to the pool.

    Raises:
        IntegrityError: A contradiction.
    """
    _check_places(pool)
    _check_holdings(pool)
    _check_prefixes(pool)


def _check_places(pool: PoolView) -> None:
    blocks = pool.blocks
    ids = np.arange(1, blocks.block_count, dtype=np.int64)
    states = blocks.states(ids)
    _same("free stack and blocks of even generation", np.sort(blocks.free()), ids[states == BlockState.FREE])
    evictable = blocks.evictable.block_ids()
    _same("recency log and evictable blocks", np.sort(evictable), ids[states == BlockState.EVICTABLE])
    _true("the recency log's count", len(evictable) == len(blocks.evictable))
    _true("evictable blocks can be found", bool(blocks.listed[evictable].all()))
    _true("the count of held blocks", blocks.held_count == np.count_nonzero(blocks.references))
    _true("the count of busy blocks", blocks.busy_count == np.count_nonzero(blocks.busy))
    blank = np.append(ids[states == BlockState.FREE], 0)
    for name, column in (("reference", blocks.references), ("commit", blocks.committed), ("pin", blocks.busy)):
        _true(f"no {name} of a blank block", not column[blank].any())


def _check_holdings(pool: PoolView) -> None:
    blocks, holdings = pool.blocks, pool.holdings
    references = holdings.held.copy()
    for session in pool.sessions:
        for block, count in session.shared.items():
            _true("a shared reference", count > 0 and holdings.holder[block] != session.session_id)
            references[block] += count
        _true("a session's count of blocks", session.block_count == len(holdings.blocks_of(session)))
    _same("references and holdings", references, blocks.references)
    _same("held counts and holders", np.flatnonzero(holdings.held > 0), np.flatnonzero(holdings.holder != NOBODY))
    live = [NOBODY, *(session.session_id for session in pool.sessions)]
    _true("every holder lives", bool(np.isin(holdings.holder, live).all()))
    owned = np.flatnonzero((blocks.references > 0) & ~blocks.committed)
    _same("owners of uncommitted blocks", holdings.held[owned], blocks.references[owned])


def _check_prefixes(pool: PoolView) -> None:
    blocks, prefixes = pool.blocks, pool.prefixes
    names = list(prefixes.items())
    named = np.array([block for _, _, block in names], np.int64)
    _same("prefix index and listed blocks", named, np.flatnonzero(blocks.listed))
    _true("the count of prefixes", len(prefixes) == len(names))
    _true("every name finds its block", all(prefixes.find_all(space, [value]) == [i] for space, value, i in names))
    _true("listed blocks are committed", bool(blocks.committed[blocks.listed].all()))
    _true("committed blocks have no writer", bool((blocks.busy[blocks.committed] >= 0).all()))


def _same(what: str, left: Ids, right: Ids) -> None:
    if not np.array_equal(left, right):
        raise IntegrityError(f"{what} differ: {np.setxor1d(left, right)[:8].tolist()}")


def _true(what: str, holds: bool) -> None:
    if not holds:
        raise IntegrityError(f"{what}: does not hold")
