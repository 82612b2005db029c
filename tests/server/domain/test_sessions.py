"""Guarantee: a session belongs to one owner at a time and lives until it is deleted or told to have expired."""

import pytest

from statepool.errors import (
    OwnerKeyInUseError,
    QuotaExceededError,
    SessionExpiredError,
    SessionFencedError,
    SessionNotFoundError,
)
from statepool_server.pool import Pool, PoolConfig
from statepool_server.sessions import SessionTable
from support.small_pool import ALICE, BOB, small_pool


def test_a_take_over_keeps_the_blocks_and_fences_the_former_owner() -> None:
    """The session id stays, the epoch grows, the lease starts anew."""
    pool = small_pool()
    refs = pool.allocate(*ALICE, 2)

    session, taken_over = pool.create_session("alice", 50, True, 7)

    assert taken_over
    assert (session.session_id, session.epoch, session.expires_ns, session.block_count) == (1, 2, 57, 2)
    with pytest.raises(SessionFencedError):
        pool.free(*ALICE, refs)
    pool.free(1, 2, refs)


def test_an_owner_key_is_not_taken_by_chance() -> None:
    """Without the word take over, a key in use is refused; sessions without a key are never the same."""
    pool = small_pool()

    with pytest.raises(OwnerKeyInUseError):
        pool.create_session("alice", 50, False, 0)
    first, second = pool.create_session("", 50, True, 0), pool.create_session("", 50, True, 0)

    assert (first[0].session_id, second[0].session_id) == (3, 4)


def test_owner_keys_of_tenants_are_apart() -> None:
    """The same key of another tenant, or of none, is another session; each can be taken over and be free again."""
    pool = small_pool()

    first, _ = pool.create_session("alice", 50, True, 0, "acme")
    again, taken_over = pool.create_session("alice", 50, True, 0, "acme")
    other, _ = pool.create_session("alice", 50, True, 0, "globex")

    assert (first.session_id, again.session_id, other.session_id, taken_over) == (3, 3, 4, True)
    assert [session.tenant for session in pool.list_sessions(0, 9)] == ["", "", "acme", "globex"]
    pool.delete_session(3, 2)
    assert pool.create_session("alice", 50, False, 0, "acme")[0].session_id == 5
    assert pool.get_session(ALICE[0]).epoch == ALICE[1]


def test_a_lease_that_has_run_out_lives_until_it_is_told() -> None:
    """Expiry is a message, not a moment: until then the owner may still renew."""
    pool = small_pool()
    pool.keep_alive(*ALICE, 1000)

    expired = pool.expire_sessions(1000)

    assert expired == [BOB[0]]
    assert pool.next_expiry_ns == 1100


def test_sessions_expire_in_the_order_of_their_ends() -> None:
    """However often they were renewed."""
    pool = small_pool()
    pool.keep_alive(*BOB, 10)
    pool.keep_alive(*ALICE, 150)

    assert pool.expire_sessions(500) == [BOB[0], ALICE[0]]
    assert pool.next_expiry_ns is None


def test_a_renewal_to_a_former_end_expires_once() -> None:
    """A take-over with a shorter lease, renewed to the end of the longer one, is one session still."""
    pool = small_pool()
    pool.create_session("alice", 50, True, 0)
    pool.keep_alive(1, 2, 50)

    assert pool.expire_sessions(100) == [1]


def test_a_renewal_after_leases_were_put_off() -> None:
    """A renewal that brings the end of a lease forward counts, also where other leases end before it was to end."""
    pool = Pool(PoolConfig(block_count=4, block_tokens=4))
    for ttl in (100, 10):
        pool.create_session("", ttl, False, 0)
    pool.prolong_leases(300)
    assert pool.next_expiry_ns == 300

    pool.keep_alive(2, 1, 20)
    pool.keep_alive(1, 1, 20)

    assert pool.next_expiry_ns == 30
    assert pool.expire_sessions(30) == [2]
    assert pool.next_expiry_ns == 120


def test_expired_is_told_from_unknown_for_the_last_ones() -> None:
    """A bounded number of expired ids is remembered; deleted ones are unknown."""
    pool = Pool(PoolConfig(block_count=2, block_tokens=1, remembered_sessions=1))
    for ttl in (1, 2, 3):
        pool.create_session("", ttl, False, 0)
    pool.expire_sessions(2)
    pool.delete_session(3, 1)

    with pytest.raises(SessionExpiredError):
        pool.check_session(2, 1)
    for session_id in (1, 3, 99):
        with pytest.raises(SessionNotFoundError):
            pool.check_session(session_id, 1)


def test_sessions_are_bounded_and_ids_are_never_used_again() -> None:
    """A full table refuses; a place that became free gets a new id."""
    pool = Pool(PoolConfig(block_count=2, block_tokens=1, max_sessions=1))
    pool.create_session("", 1, False, 0)

    with pytest.raises(QuotaExceededError):
        pool.create_session("", 1, False, 0)
    pool.delete_session(1, 1)

    assert pool.create_session("", 1, False, 0)[0].session_id == 2


def test_sessions_are_listed_in_pages() -> None:
    """By id, after an id, at most so many."""
    pool = small_pool()
    pool.create_session("", 1, False, 0)

    assert [session.session_id for session in pool.list_sessions(1, 1)] == [2]
    assert [session.owner_key for session in pool.list_sessions(0, 9)] == ["alice", "bob", ""]


def test_sessions_that_come_and_go_leave_nothing_behind() -> None:
    """The notes of deleted sessions' ends are cleared away long before those ends come."""
    table = SessionTable(max_sessions=4, remembered=4)

    for _ in range(1000):
        session, _ = table.open("", 10**18, False, 0)
        table.close(session, expired=False)

    assert table.note_count < 100
    assert table.next_expiry_ns is None
