"""Opens sessions, and opens others in place of those that were lost, in threads of their own."""

from __future__ import annotations

import time
from functools import partial
from threading import Thread

from statepool import calls
from statepool.backoff import Backoff
from statepool.clock import now
from statepool.errors import StatepoolError
from statepool.lease import PASSING_ERRORS, Lease, Terms, log, tell
from statepool.sync.keeper import Keeper
from statepool.sync.session import Session
from statepool.sync.transport import Transport


class Opener:
    """Opens the sessions of a client."""

    def __init__(self, transport: Transport, keeper: Keeper) -> None:
        self._transport = transport
        self._keeper = keeper

    def open(self, terms: Terms[Session], timeout: float | None) -> Session:
        """Opens a session and has it kept alive.

        Raises:
            StatepoolError: What the server has against it.
        """
        call = calls.sessions.create_session(terms.ttl, terms.owner_key, terms.take_over)
        asked_at = now()
        lease = Lease(self._transport.execute(call, timeout), asked_at, terms.resume_within)
        session = Session(self._transport, lease)
        lease.on_lost = partial(self._lost, session, terms)
        self._keeper.keep(lease)
        return session

    def _lost(self, session: Session, terms: Terms[Session], error: StatepoolError) -> None:
        name = f"on_lost of session {session.session_id}"
        if terms.on_lost is not None:
            tell(partial(terms.on_lost, session), error, name)
        if terms.asks_for_another(error):
            Thread(target=self._recreate, args=(terms.of_successor,), name="statepool-recreate", daemon=True).start()

    def _recreate(self, terms: Terms[Session]) -> None:
        backoff = Backoff()
        while not self._transport.is_closed:
            try:
                session = self.open(terms, None)
            except PASSING_ERRORS:
                time.sleep(backoff.broke())
            except RuntimeError:  # the client was closed meanwhile
                return
            except StatepoolError as error:
                log.error("a lost session has no successor: %r", error)
                return
            else:
                tell(terms.on_recreated, session, f"on_recreated of session {session.session_id}")
                return
