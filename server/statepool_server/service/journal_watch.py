"""Watches the journal: tells health when it has no room left, and when it has again."""

import asyncio

import structlog

from statepool_server.journal.journal import Journal
from statepool_server.service.health import Health
from statepool_server.service.ledger import Ledger

LOOK_SECONDS = 0.5
"""How often to look; requests are refused from the first that does not fit, whoever looks."""

TROUBLE = "the journal is full"

_log = structlog.get_logger("statepool.journal")


class JournalWatch:
    """A background part."""

    def __init__(self, journal: Journal, ledger: Ledger, health: Health) -> None:
        """Builds the watch.

        Args:
            journal: The journal.
            ledger: Writes it.
            health: Health service to update.
        """
        self._journal = journal
        self._ledger = ledger
        self._health = health

    async def run(self) -> None:
        """Runs until cancelled.

        Raises:
            Exception: What ended a snapshot that was being written, other than a want of room.
        """
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self._look()
            if not self._ledger.has_room():
                await self._full()

    def _look(self) -> None:
        self._ledger.shorten()
        error = self._journal.failure
        if error is not None and not isinstance(error, OSError):
            raise error

    async def _full(self) -> None:
        _log.error(f"{TROUBLE}: requests are refused")
        await self._health.begin(TROUBLE)
        while not self._ledger.has_room():
            await asyncio.sleep(LOOK_SECONDS)
            self._look()
        await self._health.end(TROUBLE)
        _log.warning("the journal has room again")
