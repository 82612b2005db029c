"""Ends sessions whose lease has run out: the only place where time reaches the pool by itself."""

import asyncio
import time

import structlog

from statepool_server.service.core import Core

_log = structlog.get_logger("statepool.sessions")


class Reaper:
    """Sleeps until the next lease ends, and is woken when leases change."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._changed = asyncio.Event()

    def lease_changed(self) -> None:
        """Tells that a lease may now be the next to end."""
        self._changed.set()

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            for session_id in self._core.expire_sessions():
                _log.info("session expired", session_id=session_id)
            self._changed.clear()
            next_ns = self._core.pool.next_expiry_ns
            delay = None if next_ns is None else max(0.0, (next_ns - time.monotonic_ns()) / 1e9)
            try:
                async with asyncio.timeout(delay):
                    await self._changed.wait()
            except TimeoutError:
                continue
