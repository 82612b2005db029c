"""Guarantee: every change is told once, in order, with the columns that a watcher needs."""

import pytest

from statepool.errors import PoolExhaustedError
from statepool_server.events import Event, EventKind
from support.small_pool import ALICE, cached, small_pool

_ORDER_OF_A_CACHED_BLOCK = [
    EventKind.SESSION_OPENED,
    EventKind.SESSION_OPENED,
    EventKind.ALLOCATED,
    EventKind.COMMITTED,
    EventKind.RELEASED,
]


def test_events_are_numbered_without_a_gap() -> None:
    """A watcher that missed one can tell; a refused call tells nothing."""
    events: list[Event] = []
    pool = small_pool(events)
    cached(pool, b"a")

    with pytest.raises(PoolExhaustedError):
        pool.allocate(*ALICE, 10)

    assert [event.kind for event in events] == _ORDER_OF_A_CACHED_BLOCK
    assert [event.sequence for event in events] == [1, 2, 3, 4, 5]


def test_an_eviction_is_told_before_the_allocation_that_caused_it() -> None:
    """Unlisted at the old generation, freed at the next, allocated at the one after."""
    events: list[Event] = []
    pool = small_pool(events)
    cached(pool, b"a")
    events.clear()

    pool.allocate(*ALICE, 9)

    assert [event.kind for event in events] == [EventKind.UNLISTED, EventKind.FREED, EventKind.ALLOCATED]
    assert [event.generations[event.block_ids == 1].tolist() for event in events] == [[1], [2], [3]]


def test_the_end_of_a_session_is_told_after_its_releases() -> None:
    """Whether it was deleted or has expired is told apart."""
    events: list[Event] = []
    pool = small_pool(events)
    pool.allocate(*ALICE, 1)
    events.clear()

    pool.delete_session(*ALICE)
    pool.expire_sessions(1000)

    told = [(event.kind, event.session_id, event.owner_key) for event in events]
    assert told[0] == (EventKind.RELEASED, 1, "alice")
    assert told[1][0] is EventKind.FREED
    assert told[2] == (EventKind.SESSION_DELETED, 1, "alice")
    assert told[-1] == (EventKind.SESSION_EXPIRED, 2, "bob")
