"""Guarantee: the integrity check finds a contradiction wherever one is planted."""

from collections.abc import Callable

import numpy as np
import pytest

from statepool_server.integrity import IntegrityError, check_integrity
from statepool_server.pool import Pool
from support.small_pool import ALICE, BOB, cached, commit, small_pool


def _lived_in() -> Pool:
    """Builds a pool with blocks in every place: 1 and 2 held, 2 shared, 3 evictable, 4 releasing, the rest blank."""
    pool = small_pool()
    refs = pool.allocate(*ALICE, 2)
    commit(pool, ALICE, refs[1], [b"shared"])
    pool.retain(*BOB, refs[1])
    cached(pool, b"a")
    pool.pin_read(*BOB, cached(pool, b"b"))
    return pool


def _set(column: str, block: int, value: int) -> Callable[[Pool], None]:
    def spoil(pool: Pool) -> None:
        owner = pool.holdings if hasattr(pool.holdings, column) else pool.blocks
        getattr(owner, column)[block] = value

    return spoil


def _forget_use(pool: Pool) -> None:
    pool.blocks.evictable.discard(np.array([3]))


def _forget_name(pool: Pool) -> None:
    pool.prefixes.remove(np.array([3]))


def _miscount(pool: Pool) -> None:
    pool.blocks.held_count += 1


def _share_nothing(pool: Pool) -> None:
    pool.sessions.get(BOB[0]).shared[2] = 0


def _lose_session(pool: Pool) -> None:
    pool.sessions.close(pool.sessions.get(ALICE[0]), expired=False)


def test_a_pool_that_was_used_is_sound() -> None:
    """The check passes where nothing is wrong."""
    check_integrity(_lived_in())


@pytest.mark.parametrize(
    "spoil",
    [
        _set("generations", 1, 2),
        _set("generations", 9, 1),
        _set("references", 1, 2),
        _set("references", 3, 1),
        _set("committed", 9, 1),
        _set("committed", 2, 0),
        _set("listed", 1, 1),
        _set("listed", 3, 0),
        _set("busy", 3, 1),
        _set("busy", 4, 0),
        _set("busy", 2, -1),
        _set("holder", 1, 0),
        _set("holder", 1, 99),
        _set("held", 1, 0),
        _forget_use,
        _forget_name,
        _miscount,
        _share_nothing,
        _lose_session,
    ],
)
def test_a_contradiction_is_found(spoil: Callable[[Pool], None]) -> None:
    """One wrong cell or count is enough."""
    pool = _lived_in()

    spoil(pool)

    with pytest.raises(IntegrityError):
        check_integrity(pool)
