"""Ends sessions and transfers whose time is over: the only place where time reaches the pool by itself."""

import asyncio
import time

import structlog

from statepool_server.service.core import Core
from statepool_server.service.ledger import Kind, ValueCodec

_log = structlog.get_logger("statepool.leases")


class Reaper:
    """Sleeps until the next lease ends, and is woken when leases change."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._changed = asyncio.Event()
        register, nothing = core.ledger.register, ValueCodec(type(None))
        register(Kind.EXPIRE_SESSIONS, nothing, self._expire, can_be_refused=False)
        register(Kind.EXPIRE_TRANSFERS, nothing, self._expire_transfers, can_be_refused=False)

    def lease_changed(self) -> None:
        """Tells that a lease may now be the next to end."""
        self._changed.set()

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            self._changed.clear()
            next_ns = self._core.pool.next_expiry_ns
            delay = None if next_ns is None else (next_ns - time.monotonic_ns()) / 1e9
            if delay is not None and delay <= 0:
                self._end_what_is_due(time.monotonic_ns())
                continue
            try:
                async with asyncio.timeout(delay):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def _end_what_is_due(self, now_ns: int) -> None:
        core = self._core
        if (core.pool.transfers.next_expiry_ns or now_ns + 1) <= now_ns:
            _log.info("transfers expired", transfer_ids=core.ledger.perform(Kind.EXPIRE_TRANSFERS, None))
        if (core.pool.sessions.next_expiry_ns or now_ns + 1) <= now_ns:
            expired = core.ledger.perform(Kind.EXPIRE_SESSIONS, None)
            core.sessions_changed()
            _log.info("sessions expired", session_ids=expired)

    def _expire_transfers(self, _request: None, now_ns: int) -> list[int]:
        return self._core.pool.expire_transfers(now_ns)

    def _expire(self, _request: None, now_ns: int) -> list[int]:
        expired = self._core.pool.expire_sessions(now_ns)
        self._core.forget_sessions(expired)
        return expired
