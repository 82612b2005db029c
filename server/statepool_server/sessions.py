"""The table of sessions: leases, epochs, owner keys. Time enters as an argument, never from a clock."""

import functools
import heapq
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

import xxhash

from statepool.errors import (
    OwnerKeyInUseError,
    QuotaExceededError,
    SessionExpiredError,
    SessionFencedError,
    SessionNotFoundError,
)

_TAKEN = -1
_SPARE_NOTES = 64
_IDS_PER_MS = 2**14
"""More than can be given out in a millisecond; with it, ids stay below 2**53 for 17 years of uptime."""


def ids_before(now_ns: int) -> int:
    """Tells an id above all that servers of this machine have given out so far.

    Ids ascend over all of them, so that a process that attaches now can tell that a session is of a server before this
    one, and no longer lives: what a scheduler that knows nothing of it still wants done is done for nobody.

    Args:
        now_ns: Time since the machine was started, in nanoseconds.
    """
    return now_ns // 1_000_000 * _IDS_PER_MS


@functools.lru_cache(maxsize=1024)
def account_of(tenant: str) -> int:
    """Numbers a tenant, the same in all servers; 0: nobody."""
    return xxhash.xxh3_64_intdigest(tenant.encode()) >> 1 if tenant else 0


@dataclass(slots=True)
class Session:
    """A lease."""

    session_id: int
    """Ascends, never reused."""
    owner_key: str
    """The owner's name for it; empty: none."""
    epoch: int
    """Grows at every take-over."""
    ttl_ns: int
    """Time to live, in nanoseconds."""
    expires_ns: int
    """When the lease ends, on the caller's clock."""
    noted_ns: int = 0
    """End of the lease as the table's heap has it; at most `expires_ns`."""
    block_count: int = 0
    """Blocks that it holds, each counted once."""
    shared: dict[int, int] = field(default_factory=dict)
    """References to blocks whose first holder is another session: block id to count."""
    tenant: str = ""
    """On whose account it runs; empty: nobody's. Owner keys of tenants are apart."""

    @property
    def account(self) -> int:
        """Number of its tenant; see `account_of`."""
        return account_of(self.tenant)


@dataclass(frozen=True, slots=True)
class SessionsState:
    """A table of sessions at a moment."""

    live: list[Session]
    """The sessions, in the order of their ids."""
    expired: list[int]
    """Ids of expired sessions that are remembered, oldest first."""
    last_id: int
    """Highest id that was given out."""


class SessionTable:
    """Live sessions by id."""

    def __init__(self, max_sessions: int, remembered: int, last_id: int = 0) -> None:
        """Builds an empty table.

        Args:
            max_sessions: Live sessions at a time.
            remembered: Ids of expired sessions that are told apart from unknown ones.
            last_id: Ids up to this one were given out before.
        """
        self._max_sessions = max_sessions
        self._remembered = remembered
        self._sessions: dict[int, Session] = {}
        self._by_owner_key: dict[tuple[str, str], int] = {}  # by tenant and key
        self._expired: OrderedDict[int, None] = OrderedDict()
        self._deadlines: list[tuple[int, int]] = []  # heap of (noted_ns, session id)
        self._last_id = last_id

    @property
    def last_id(self) -> int:
        """Highest id that was given out; ids are given out in ascending order."""
        return self._last_id

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._sessions.values())

    def open(self, owner_key: str, ttl_ns: int, take_over: bool, now_ns: int, tenant: str = "") -> tuple[Session, bool]:
        """Opens a session, or takes the one of the same tenant and owner key over.

        Returns:
            The session, and whether it was taken over.

        Raises:
            OwnerKeyInUseError: A live session has the key and `take_over` is false.
            QuotaExceededError: As many sessions live as may.
        """
        former = self._sessions.get(self._by_owner_key.get((tenant, owner_key), 0)) if owner_key else None
        if former is not None:
            return self._take_over(former, ttl_ns, take_over, now_ns), True
        if len(self._sessions) >= self._max_sessions:
            raise QuotaExceededError(f"{self._max_sessions} sessions are open already", limit=self._max_sessions)
        self._last_id += 1
        session = Session(self._last_id, owner_key, 1, ttl_ns, now_ns + ttl_ns, tenant=tenant)
        self._sessions[session.session_id] = session
        if owner_key:
            self._by_owner_key[tenant, owner_key] = session.session_id
        self._note(session)
        return session, False

    def get(self, session_id: int) -> Session:
        """Finds a session.

        Raises:
            SessionExpiredError: Its lease ran out, not long ago.
            SessionNotFoundError: No session has the id.
        """
        session = self._sessions.get(session_id)
        if session is not None:
            return session
        if session_id in self._expired:
            raise SessionExpiredError(f"session {session_id} has expired", field="session")
        raise SessionNotFoundError(f"no session {session_id}", field="session")

    def find(self, session_id: int) -> Session | None:
        """Finds a session, None where no session has the id."""
        return self._sessions.get(session_id)

    def owned(self, session_id: int, epoch: int) -> Session:
        """Finds a session for its present owner.

        Raises:
            SessionFencedError: It was taken over.
            SessionExpiredError: Its lease ran out.
            SessionNotFoundError: No session has the id.
        """
        session = self.get(session_id)
        if session.epoch != epoch:
            raise SessionFencedError(
                f"session {session_id} is at epoch {session.epoch}, not {epoch}: it was taken over", field="session"
            )
        return session

    def has_owner(self, tenant: str, owner_key: str) -> bool:
        """Tells whether a live session of the tenant has the owner key."""
        return bool(owner_key) and (tenant, owner_key) in self._by_owner_key

    def renew(self, session: Session, now_ns: int) -> None:
        """Starts the lease anew; it may end earlier than before, where `prolong` has put its end off."""
        session.expires_ns = now_ns + session.ttl_ns
        if session.expires_ns < session.noted_ns:
            self._note(session)

    def close(self, session: Session, *, expired: bool) -> None:
        """Removes a session."""
        del self._sessions[session.session_id]
        if session.owner_key:
            del self._by_owner_key[session.tenant, session.owner_key]
        if expired:
            self._expired[session.session_id] = None
            if len(self._expired) > self._remembered:
                self._expired.popitem(last=False)

    def due(self, now_ns: int) -> list[Session]:
        """Takes note of the sessions whose lease has ended, in the order of their ends; the caller closes them."""
        found = []
        while (next_ns := self.next_expiry_ns) is not None and next_ns <= now_ns:
            _, session_id = heapq.heappop(self._deadlines)
            session = self._sessions[session_id]
            session.noted_ns = _TAKEN  # an older note may stand at the very same time
            found.append(session)
        return found

    @property
    def note_count(self) -> int:
        """Notes of ends of leases that are kept, those of sessions that were deleted or renewed included."""
        return len(self._deadlines)

    @property
    def next_expiry_ns(self) -> int | None:
        """When the next lease ends, None where there is none."""
        deadlines = self._deadlines
        while deadlines:
            noted_ns, session_id = deadlines[0]
            session = self._sessions.get(session_id)
            if session is None or session.noted_ns != noted_ns:
                heapq.heappop(deadlines)  # closed, or noted again with an earlier end
            elif session.expires_ns == noted_ns:
                return noted_ns
            else:  # renewed since
                session.noted_ns = session.expires_ns
                heapq.heapreplace(deadlines, (session.noted_ns, session_id))
        return None

    def page(self, after_id: int, limit: int) -> list[Session]:
        """Lists sessions in the order of their ids, which is the order of the table."""
        ids = [session_id for session_id in self._sessions if session_id > after_id][:limit]
        return [self._sessions[session_id] for session_id in ids]

    def facts(self) -> tuple[object, ...]:
        """Tells all that decides what the table answers, as plain values in a fixed order."""
        live = [
            (s.session_id, s.owner_key, s.epoch, s.ttl_ns, s.expires_ns, sorted(s.shared.items()), s.tenant)
            for s in self
        ]
        return (live, list(self._expired), self._last_id)

    def prolong(self, until_ns: int) -> None:
        """Lets no lease end before a moment."""
        for session in self:
            session.expires_ns = max(session.expires_ns, until_ns)

    def skip(self, last_id: int) -> None:
        """Gives out no id up to this one from here on: a table that knew more than this one may have."""
        self._last_id = max(self._last_id, last_id)

    def dump(self) -> SessionsState:
        """Shows everything; the sessions themselves, not copies."""
        return SessionsState(list(self), list(self._expired), self._last_id)

    def load(self, state: SessionsState) -> None:
        """Takes a state over; the table must be new."""
        self._sessions = {session.session_id: session for session in state.live}
        self._by_owner_key = {
            (session.tenant, session.owner_key): session.session_id for session in state.live if session.owner_key
        }
        self._expired = OrderedDict.fromkeys(state.expired)
        self._last_id = state.last_id
        for session in state.live:
            self._note(session)

    def _take_over(self, session: Session, ttl_ns: int, allowed: bool, now_ns: int) -> Session:
        if not allowed:
            raise OwnerKeyInUseError(
                f"session {session.session_id} has owner key {session.owner_key!r}", field="owner_key"
            )
        session.epoch += 1
        session.ttl_ns = ttl_ns
        self.renew(session, now_ns)
        return session

    def _note(self, session: Session) -> None:
        session.noted_ns = session.expires_ns
        heapq.heappush(self._deadlines, (session.noted_ns, session.session_id))
        if len(self._deadlines) > 2 * len(self._sessions) + _SPARE_NOTES:  # most are of sessions that were deleted
            self._deadlines = [(live.noted_ns, live.session_id) for live in self]
            heapq.heapify(self._deadlines)
