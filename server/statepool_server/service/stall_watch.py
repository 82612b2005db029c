"""Tells memory work that stands still from work that takes long, so that nobody waits for a device that hangs."""

import asyncio

import structlog

from statepool_server.service.copying import CopyThreads
from statepool_server.service.health import Health

LOOKS = 4
"""How often work is looked at within the time that it may take.

Work is timed by looks and not by a clock: a process that was stopped, or whose loop was held up, looks once when it
goes on, and so gives its threads the time that it did not have either.
"""

TROUBLE = "memory work stands still"

_log = structlog.get_logger("statepool.copying")


class StallWatch:
    """Watches the copy threads."""

    def __init__(self, copies: CopyThreads, health: Health, timeout: float) -> None:
        """Builds the watch.

        Args:
            copies: The threads.
            health: Health service to update.
            timeout: Seconds that work may run; it is found out within a quarter of that.
        """
        self._copies = copies
        self._health = health
        self._timeout = timeout

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            await asyncio.sleep(self._timeout / LOOKS)
            self._copies.look()
            if self._overdue():
                await self._stand_still()

    def _overdue(self) -> int:
        return self._copies.seen(LOOKS + 1)

    async def _stand_still(self) -> None:
        """Refuses callers until the work that stands still has ended."""
        reason = f"{self._overdue()} copies have been running for more than {self._timeout:g} s"
        _log.error(TROUBLE, reason=reason)
        self._copies.stall(reason)
        await self._health.begin(TROUBLE)
        while self._overdue():
            await self._copies.ended()
        self._copies.resume()
        await self._health.end(TROUBLE)
        _log.warning("memory work goes on")
