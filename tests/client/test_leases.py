"""Guarantee: a lease is renewed in time, and once it cannot be relied on it is lost, once, with one error."""

import math
import sys
from collections.abc import Callable

import pytest

from statepool.calls.sessions import Opened
from statepool.clock import now
from statepool.errors import (
    DrainingError,
    IncarnationMismatchError,
    OverloadedError,
    PoolExhaustedError,
    SessionExpiredError,
    SessionFencedError,
    SessionNotFoundError,
    StatepoolError,
    UnavailableError,
)
from statepool.lease import LOSING_ERRORS, Lease
from statepool.leases import Leases
from statepool.renewals import MAX_SESSIONS_PER_REQUEST, Renewals
from statepool.v1.session_pb2 import KeepAliveRequest, KeepAliveResponse, KeepAliveResult
from statepool.v1.types_pb2 import Error, SessionRef

START = 1000.0
INCARNATION = 7


def _lease(leases: Leases, session_id: int, ttl: float = 9.0, asked_at: float = START) -> tuple[Lease, list[str]]:
    """Makes a lease and a list that gets the reason of every loss its owner is told of."""
    lease = Lease(Opened(SessionRef(session_id=session_id, epoch=1, incarnation=INCARNATION), "", ttl, False), asked_at)
    told: list[str] = []
    lease.on_lost = lambda error: told.append(error.reason)
    leases.add(lease)
    return lease, told


def _ids(request: KeepAliveRequest | None) -> list[int]:
    return [] if request is None else [session.session_id for session in request.sessions]


def _granted(count: int) -> KeepAliveResponse:
    return KeepAliveResponse(incarnation=INCARNATION, results=[KeepAliveResult() for _ in range(count)])


def test_a_lease_is_renewed_after_a_third() -> None:
    """Nothing is sent before a third of the ttl, and a granted renewal counts from when it was sent."""
    leases = Leases()
    renewals = Renewals(leases)
    lease, _ = _lease(leases, 1)

    assert renewals.next_at() == START + 3.0
    assert renewals.request(START + 2.9) is None
    assert _ids(renewals.request(START + 3.1)) == [1]
    renewals.answered(_granted(1))

    assert lease.expires_at == START + 3.1 + 9.0
    assert renewals.next_at() == START + 3.1 + 3.0


def test_leases_share_a_request() -> None:
    """Leases that are due soon come along with the one that is due; those of much longer lives do not."""
    leases = Leases()
    renewals = Renewals(leases)
    _lease(leases, 1)
    _lease(leases, 2, asked_at=START + 1.0)
    _lease(leases, 3, ttl=3600.0)

    assert _ids(renewals.request(START + 3.0)) == [1, 2]


def test_a_request_is_bounded() -> None:
    """More leases than one request may name are renewed by the next ones, one unanswered at a time."""
    leases = Leases()
    renewals = Renewals(leases)
    for session_id in range(MAX_SESSIONS_PER_REQUEST + 1):
        _lease(leases, session_id)

    first = _ids(renewals.request(START + 3.0))
    assert renewals.request(START + 3.0) is None
    renewals.answered(_granted(len(first)))
    second = _ids(renewals.request(START + 3.0))

    assert len(first) == MAX_SESSIONS_PER_REQUEST
    assert sorted(first + second) == list(range(MAX_SESSIONS_PER_REQUEST + 1))


def test_a_silent_stream_is_given_up() -> None:
    """An answer that is a third of the ttl late makes the next request go over another stream, soon."""
    leases = Leases()
    renewals = Renewals(leases)
    _lease(leases, 1)
    renewals.request(START + 3.0)

    assert not renewals.is_overdue(START + 5.9)
    assert renewals.is_overdue(START + 6.0)
    renewals.broke(START + 6.0)

    assert START + 6.0 < renewals.next_at() < START + 6.1
    assert _ids(renewals.request(START + 6.1)) == [1]


def test_broken_streams_are_opened_less_and_less_often() -> None:
    """The wait after a broken stream grows to a second, and begins small again after an answer."""
    leases = Leases()
    renewals = Renewals(leases)
    _lease(leases, 1, ttl=900.0)
    waits = []
    for _ in range(12):
        renewals.request(START + 300.0)
        renewals.broke(START + 300.0)
        waits.append(renewals.next_at() - START - 300.0)

    assert waits[0] <= 0.051
    assert 0.5 <= waits[-1] <= 1.001
    renewals.request(START + 302.0)
    renewals.answered(_granted(1))
    renewals.broke(START + 302.0)
    assert renewals.request(START + 302.06) is None
    assert _ids(renewals.request(START + 603.0)) == [1]


def test_a_lease_without_a_renewal_is_lost() -> None:
    """When the ttl has passed since the last granted renewal, the owner is told, once."""
    leases = Leases()
    renewals = Renewals(leases)
    lease, told = _lease(leases, 1)

    renewals.expire(START + 8.9)
    assert told == []
    renewals.expire(START + 9.0)
    renewals.expire(START + 9.1)

    assert told == ["SESSION_EXPIRED"]
    assert isinstance(lease.error, SessionExpiredError)
    assert renewals.next_at() == math.inf


def test_one_refused_renewal_loses_one_lease() -> None:
    """A result's error is the lease's; the others of the request are renewed."""
    leases = Leases()
    renewals = Renewals(leases)
    fenced, told_fenced = _lease(leases, 1)
    kept, told_kept = _lease(leases, 2)
    asked = _ids(renewals.request(START + 3.0))
    error = Error(code=SessionFencedError.code, reason=SessionFencedError.reason, message="taken over")
    results = [KeepAliveResult(error=error) if session_id == 1 else KeepAliveResult() for session_id in asked]

    renewals.answered(KeepAliveResponse(incarnation=INCARNATION, results=results))

    assert (told_fenced, told_kept) == (["SESSION_FENCED"], [])
    assert isinstance(fenced.error, SessionFencedError)
    assert kept.expires_at == START + 12.0


def test_another_server_process_loses_every_lease_of_the_former() -> None:
    """Any answer with a new incarnation ends the old sessions; a late answer of the old process ends nothing."""
    leases = Leases()
    leases.saw_incarnation(INCARNATION)
    old, told_old = _lease(leases, 1)

    leases.saw_incarnation(8)
    new = Lease(Opened(SessionRef(session_id=1, epoch=1, incarnation=8), "", 9.0, False), START)
    leases.add(new)
    leases.saw_incarnation(INCARNATION)

    assert told_old == ["INCARNATION_MISMATCH"]
    assert isinstance(old.error, IncarnationMismatchError)
    assert "opened without resume_within" in old.error.message
    assert new.error is None


@pytest.mark.parametrize("cls", LOSING_ERRORS)
def test_a_call_can_find_a_lease_lost(cls: type[StatepoolError]) -> None:
    """What no call can recover from is raised by every later call, as a new exception of the same class."""
    error = cls("gone")
    leases = Leases()
    lease, told = _lease(leases, 1, asked_at=now())

    assert leases.failed(lease, error) is error
    with pytest.raises(cls) as first:
        leases.check(lease)
    with pytest.raises(cls) as second:
        leases.check(lease)

    assert told == [error.reason]
    assert first.value is not second.value


def test_other_errors_lose_nothing() -> None:
    """A full pool is no reason to give a session up."""
    leases = Leases()
    lease, told = _lease(leases, 1, asked_at=now())

    leases.failed(lease, PoolExhaustedError("full"))
    leases.check(lease)

    assert told == []


def test_a_call_notices_an_expired_lease_itself() -> None:
    """A call does not rely on the background to have found out."""
    leases = Leases()
    lease, told = _lease(leases, 1, asked_at=now() - 9.0)

    with pytest.raises(SessionExpiredError):
        leases.check(lease)
    assert told == ["SESSION_EXPIRED"]


def test_a_lease_given_back_is_not_lost() -> None:
    """Its owner is not told, whatever a renewal under way answers; calls are refused; giving back twice is nothing."""
    leases = Leases()
    renewals = Renewals(leases)
    lease, told = _lease(leases, 1)
    renewals.request(START + 3.0)

    assert leases.give_back(lease)
    assert not leases.give_back(lease)
    error = Error(code=SessionNotFoundError.code, reason=SessionNotFoundError.reason, message="deleted")
    renewals.answered(KeepAliveResponse(incarnation=INCARNATION, results=[KeepAliveResult(error=error)]))

    assert told == []
    with pytest.raises(SessionNotFoundError, match="the session is closed"):
        leases.check(lease)


@pytest.mark.parametrize("owner", [lambda _: 1 / 0, sys.exit])
def test_an_owner_that_fails_disturbs_nobody(
    caplog: pytest.LogCaptureFixture, owner: Callable[[StatepoolError], object]
) -> None:
    """What on_lost raises is logged, and the other owners are told all the same, by a thread that lives on."""
    leases = Leases()
    first, _ = _lease(leases, 1)
    first.on_lost = owner
    second, told = _lease(leases, 2)

    leases.lose([first, second], SessionExpiredError("x"))

    assert told == ["SESSION_EXPIRED"]
    assert "on_lost of session 1 failed" in caplog.text


class TestResuming:
    """A lease that may be resumed."""

    def _lease(self, leases: Leases) -> tuple[Lease, list[str]]:
        """Makes one that lasts 9 seconds, and may be resumed for 20 more; the server has answered before."""
        leases.saw_incarnation(INCARNATION)
        opened = Opened(SessionRef(session_id=1, epoch=1, incarnation=INCARNATION), "", 9.0, False)
        lease = Lease(opened, now(), resume_within=20.0)
        told: list[str] = []
        lease.on_lost = lambda error: told.append(error.reason)
        leases.add(lease)
        return lease, told

    def test_another_process_suspends_it(self) -> None:
        """It is not lost; nothing may be sent with it, and its renewal is due at once."""
        leases = Leases()
        lease, told = self._lease(leases)
        suspended: list[None] = []
        leases.on_suspended = lambda: suspended.append(None)

        leases.saw_incarnation(8)

        leases.check(lease)
        assert (lease.is_suspended, told, len(suspended)) == (True, [], 1)
        assert _ids(Renewals(leases).request(now())) == [1]

    def test_a_granted_renewal_takes_it_up(self) -> None:
        """From then on its calls carry the process that granted it; who waits for it is told."""
        leases = Leases()
        renewals = Renewals(leases)
        lease, told = self._lease(leases)
        changes: list[None] = []
        lease.listen(lambda: changes.append(None))
        leases.saw_incarnation(8)
        request = renewals.request(now())

        renewals.answered(KeepAliveResponse(incarnation=8, results=[KeepAliveResult()]))

        assert request is not None
        assert request.sessions[0].incarnation == INCARNATION
        assert (lease.is_suspended, lease.opened.ref.incarnation, told, len(changes)) == (False, 8, [], 1)
        assert (leases.restarts, leases.resumed, leases.lost) == (1, 1, 0)

    def test_the_renewal_itself_may_be_what_tells_of_the_restart(self) -> None:
        """One exchange with the restarted server is enough; the other leases are lost by it."""
        leases = Leases()
        renewals = Renewals(leases)
        lease, told = self._lease(leases)
        other, told_other = _lease(leases, 2, asked_at=now())
        renewals.request(lease.renew_at + 1.0)

        results = [KeepAliveResult(), KeepAliveResult()]
        renewals.answered(KeepAliveResponse(incarnation=8, results=results))

        assert (lease.error, lease.is_suspended, lease.opened.ref.incarnation, told) == (None, False, 8, [])
        assert (other.opened.ref.incarnation, told_other) == (INCARNATION, ["INCARNATION_MISMATCH"])

    @pytest.mark.parametrize("cls", LOSING_ERRORS)
    def test_a_refused_renewal_loses_it(self, cls: type[StatepoolError]) -> None:
        """A server that does not know it, or does not continue its process, has the last word."""
        leases = Leases()
        renewals = Renewals(leases)
        lease, told = self._lease(leases)
        leases.saw_incarnation(8)
        renewals.request(now())

        result = KeepAliveResult(error=Error(code=cls.code, reason=cls.reason, message="no"))
        renewals.answered(KeepAliveResponse(incarnation=8, results=[result]))

        assert isinstance(lease.error, cls)
        assert told == [cls.reason]

    def test_its_end_suspends_it_and_the_end_of_the_wait_loses_it(self) -> None:
        """A lease that ended here is given up as long after its end as its owner has asked for."""
        leases = Leases()
        lease, told = self._lease(leases)
        lease.renewed(now() - 9.0)
        suspended = lease.is_suspended
        leases.check(lease)
        lease.renewed(now() - 29.0)

        with pytest.raises(SessionExpiredError):
            leases.check(lease)

        assert suspended
        assert told == ["SESSION_EXPIRED"]

    @pytest.mark.parametrize("error", [UnavailableError("gone"), DrainingError("x"), IncarnationMismatchError("x")])
    def test_a_call_that_finds_no_server_suspends_it(self, error: StatepoolError) -> None:
        """Its next attempt is worth while when a renewal is granted."""
        leases = Leases()
        lease, told = self._lease(leases)

        leases.failed(lease, error)

        assert (lease.is_suspended, told) == (True, [])

    def test_an_overloaded_server_does_not(self) -> None:
        """It answers, after all."""
        leases = Leases()
        lease, _ = self._lease(leases)

        leases.failed(lease, OverloadedError("busy"))

        assert not lease.is_suspended

    def test_a_broken_stream_makes_it_due(self) -> None:
        """A restart is noticed as soon as there is a server again, not after a third of the ttl."""
        leases = Leases()
        renewals = Renewals(leases)
        self._lease(leases)
        at = now()

        renewals.broke(at)

        assert at < renewals.next_at() < at + 0.1

    def test_a_late_grant_does_not_revive_it(self) -> None:
        """What is lost, or given back, stays so."""
        leases = Leases()
        lease, told = self._lease(leases)
        leases.lose([lease], SessionFencedError("x"))

        leases.granted(lease, now(), 8)

        assert lease.opened.ref.incarnation == INCARNATION
        assert told == ["SESSION_FENCED"]
