"""Opens sessions, and opens others in place of those that were lost; see `statepool.sync.opening`."""

# ruff: noqa: ASYNC109 — a deadline is sent to the server with each call, which asyncio.timeout cannot do

from __future__ import annotations

import asyncio
from functools import partial

from statepool import calls
from statepool.aio.keeper import AsyncKeeper
from statepool.aio.session import AsyncSession
from statepool.aio.transport import AsyncTransport
from statepool.backoff import Backoff
from statepool.clock import now
from statepool.errors import StatepoolError
from statepool.lease import PASSING_ERRORS, Lease, Terms, log, tell


class AsyncOpener:
    """Opens the sessions of a client."""

    def __init__(self, transport: AsyncTransport, keeper: AsyncKeeper) -> None:
        self._transport = transport
        self._keeper = keeper
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, terms: Terms[AsyncSession], timeout: float | None) -> AsyncSession:
        """Opens a session and has it kept alive.

        Raises:
            StatepoolError: What the server has against it.
        """
        call = calls.sessions.create_session(terms.ttl, terms.owner_key, terms.take_over)
        asked_at = now()
        lease = Lease(await self._transport.execute(call, timeout), asked_at, terms.resume_within)
        session = AsyncSession(self._transport, lease)
        lease.on_lost = partial(self._lost, session, terms)
        self._keeper.keep(lease)
        return session

    def close(self) -> None:
        """Stops opening sessions in place of others."""
        for task in self._tasks:
            task.cancel()

    def _lost(self, session: AsyncSession, terms: Terms[AsyncSession], error: StatepoolError) -> None:
        name = f"on_lost of session {session.session_id}"
        if terms.on_lost is not None:
            tell(partial(terms.on_lost, session), error, name)
        if terms.asks_for_another(error):
            task = asyncio.create_task(self._recreate(terms.of_successor), name="statepool-recreate")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _recreate(self, terms: Terms[AsyncSession]) -> None:
        backoff = Backoff()
        while not self._transport.is_closed:
            try:
                session = await self.open(terms, None)
            except PASSING_ERRORS:
                await asyncio.sleep(backoff.broke())
            except RuntimeError:  # the client was closed meanwhile
                return
            except StatepoolError as error:
                log.error("a lost session has no successor: %r", error)
                return
            else:
                tell(terms.on_recreated, session, f"on_recreated of session {session.session_id}")
                return
