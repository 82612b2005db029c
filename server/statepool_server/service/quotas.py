"""What each tenant may have: calls under way and a second, sessions, blocks. Refused before anything is changed."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Iterator

from statepool.errors import QuotaExceededError
from statepool_server.access.rules import AccessFile, Tenant
from statepool_server.pool import Pool

RETRY_SECONDS = 0.1
"""Hint to a caller whose tenant has as many calls under way as it may, or as many blocks."""

BURST_SECONDS = 1.0
"""The calls of how many seconds may come at once."""

_FREE = Tenant()


class _Allowance:
    """Calls that one tenant may begin now; grows with time (a token bucket)."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._left = max(1.0, rate * BURST_SECONDS)
        self._counted_at = time.monotonic()

    def take(self, *, is_first: bool = False) -> float:
        """Takes one.

        Args:
            is_first: Whether it may be taken in advance, as far as a burst reaches.

        Returns:
            Seconds until there is one; 0: it was taken.
        """
        now = time.monotonic()
        most = max(1.0, self.rate * BURST_SECONDS)
        self._left = min(most, self._left + (now - self._counted_at) * self.rate)
        self._counted_at = now
        missing = 1.0 - self._left - (most if is_first else 0.0)
        if missing > 0:
            return missing / self.rate
        self._left -= 1.0
        return 0.0


class Quotas:
    """Holds tenants to what the access file gives them; the empty name stands for no tenant, which may have all."""

    def __init__(self, access: AccessFile, pool: Pool) -> None:
        """Begins without a call.

        Args:
            access: Tells what tenants may have.
            pool: Tells what they have.
        """
        self._access = access
        self._pool = pool
        self._calls: Counter[str] = Counter()
        self._allowances: dict[str, _Allowance] = {}

    @contextlib.contextmanager
    def call(self, tenant: str, *, is_first: bool) -> Iterator[None]:
        """Counts a call of a tenant while it is under way.

        Args:
            tenant: The tenant.
            is_first: Whether it is of those that find room for as many again as all others.

        Raises:
            QuotaExceededError: There are as many as may be, or as many have come in this second.
        """
        limit = self._of(tenant).max_calls
        if limit is not None and self._calls[tenant] >= (2 * limit if is_first else limit):
            raise QuotaExceededError(
                f"tenant {tenant} has {self._calls[tenant]} calls under way", retry_after=RETRY_SECONDS, limit=limit
            )
        if wait := self._take(tenant, is_first=is_first):
            rate = self._of(tenant).max_rate
            raise QuotaExceededError(f"tenant {tenant} may have {rate:g} calls a second", retry_after=wait)
        self._calls[tenant] += 1
        try:
            yield
        finally:
            self._calls[tenant] -= 1

    async def message(self, tenant: str) -> None:
        """Waits until a stream of the tenant may have its next message: whoever sends faster is slowed down."""
        while wait := self._take(tenant):  # noqa: ASYNC110 — it is time that is waited for, not an event
            await asyncio.sleep(wait)

    def check_session(self, tenant: str) -> None:
        """Refuses another session where there are as many as the tenant may have.

        Raises:
            QuotaExceededError: There are.
        """
        limit = self._of(tenant).max_sessions
        if limit is not None and sum(session.tenant == tenant for session in self._pool.sessions) >= limit:
            raise QuotaExceededError(f"tenant {tenant} has {limit} sessions", limit=limit)

    def check_transfer(self, session_id: int) -> None:
        """Refuses another transfer where a session's tenant has as many open as it may have.

        Raises:
            QuotaExceededError: It has.
        """
        session = self._pool.sessions.find(session_id)
        limit = None if session is None else self._of(session.tenant).max_transfers
        if session is not None and limit is not None and len(self._pool.transfers.of_tenant(session.tenant)) >= limit:
            raise QuotaExceededError(f"tenant {session.tenant} has {limit} transfers open", limit=limit)

    def check_blocks(self, session_id: int, count: int) -> None:
        """Refuses more blocks than a session's tenant may have.

        Raises:
            QuotaExceededError: With them, its sessions would hold too many.
        """
        room = self.room(session_id) if count else None
        if room is not None and count > room:
            raise QuotaExceededError(
                f"{count} blocks are asked for, and the tenant may have {max(0, room)} more",
                retry_after=RETRY_SECONDS,
                room=max(0, room),
            )

    def room(self, session_id: int) -> int | None:
        """Tells how many more blocks a session's tenant may have; below 0: it has more than it may; None: no bound."""
        session = self._pool.sessions.find(session_id)
        if session is None or not session.tenant:
            return None
        limit = self._of(session.tenant).max_blocks
        if limit is None:
            return None
        return limit - self._pool.held_by(session.tenant)

    def _take(self, tenant: str, *, is_first: bool = False) -> float:
        rate = self._of(tenant).max_rate
        if rate is None:
            return 0.0
        allowance = self._allowances.get(tenant)
        if allowance is None or allowance.rate != rate:
            allowance = self._allowances[tenant] = _Allowance(rate)
        return allowance.take(is_first=is_first)

    def _of(self, tenant: str) -> Tenant:
        return self._access.rules.tenants.get(tenant, _FREE) if tenant else _FREE
