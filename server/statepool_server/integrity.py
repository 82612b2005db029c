"""Proves that a pool's columns, counters and indexes tell one story."""

import numpy as np

from statepool_server.blocks import BlockState
from statepool_server.pool import Pool


class IntegrityError(RuntimeError):
    """The pool contradicts itself; the message says how."""


def check_integrity(pool: Pool) -> None:
    """Checks conservation: every block in exactly one place, and every count equal to what it counts.

    Takes time in proportion to the pool.

    Raises:
        IntegrityError: A contradiction.
    """
    blocks, holdings = pool.blocks, pool.holdings
    ids = np.arange(1, blocks.block_count, dtype=np.int64)
    states = blocks.states(ids)
    free, evictable = blocks.free(), blocks.evictable()
    _same("free stack and even generations", np.sort(free), ids[states == BlockState.FREE])
    _same("log and evictable blocks", np.sort(evictable), ids[states == BlockState.EVICTABLE])
    _true("log and its count", len(evictable) == blocks.evictable_count)
    _true("null block", not blocks.generations[0] and not blocks.references[0] and not blocks.busy[0])
    references = holdings.held.copy()
    for session in pool.sessions:
        for block, count in session.shared.items():
            _true("shared reference", count > 0 and holdings.holder[block] != session.session_id)
            references[block] += count
    _same("references and holdings", references, blocks.references)
    _true("a holder for every held count", bool(((holdings.held > 0) == (holdings.holder > 0)).all()))
    live = np.array([session.session_id for session in pool.sessions], np.int64)
    _true("holders live", bool(np.isin(holdings.holder[holdings.holder > 0], live).all()))
    owned = (states == BlockState.OWNED).nonzero()[0] + 1
    _true("one owner of every uncommitted block", bool((holdings.held[owned] == blocks.references[owned]).all()))
    listed = [block for _, _, block in pool.prefixes.items()]
    _same("prefix index and listed blocks", np.array(listed, np.int64), np.flatnonzero(blocks.listed))
    _true("one hash per listed block", len(pool.prefixes) == len(listed))
    _true("listed blocks are committed", bool(blocks.committed[blocks.listed].all()))
    _true("committed blocks have no writer", bool((blocks.busy[blocks.committed] >= 0).all()))


def _same(what: str, left: "np.typing.NDArray[np.int64]", right: "np.typing.NDArray[np.int64]") -> None:
    if not np.array_equal(left, right):
        raise IntegrityError(f"{what} differ: {np.setxor1d(left, right)[:8].tolist()}")


def _true(what: str, holds: bool) -> None:
    if not holds:
        raise IntegrityError(f"{what}: does not hold")
