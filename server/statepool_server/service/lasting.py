"""Streams that last as long as their client: they end when the server stops, or when the caller loses its permission.

The access file can change while they are open.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator

import structlog

from statepool.errors import PeerUntrustedError, StatepoolError
from statepool_server.access.callers import Caller
from statepool_server.access.rules import AccessFile
from statepool_server.access.watched import LOOK_SECONDS
from statepool_server.service.endable import Endable

_log = structlog.get_logger("statepool.access")


class _Stream(Endable):
    """A stream, and how to find out again who has opened it."""

    def __init__(self, caller: Caller, known: Callable[[], Caller]) -> None:
        super().__init__()
        self._caller = caller
        self._known = known

    def check(self) -> None:
        """Ends the stream if its caller may not go on."""
        try:
            if self._known().tenant != self._caller.tenant:
                raise PeerUntrustedError(f"{self._caller.name} acts for another tenant now")
        except StatepoolError as error:
            if self.error is None:
                self.end(error)
                _log.info("stream ended", caller=self._caller.name, reason=error.reason)


class LastingStreams:
    """All streams that last; whenever the access file has changed they are looked at, as calls are when they come."""

    def __init__(self, access: AccessFile) -> None:
        """Begins without a stream.

        Args:
            access: Says who callers are.
        """
        self._access = access
        self._streams: set[_Stream] = set()
        self._ended_with: StatepoolError | None = None

    @contextlib.contextmanager
    def opened(self, caller: Caller, known: Callable[[], Caller]) -> Iterator[None]:
        """Keeps the stream that the present task handles in the list.

        Args:
            caller: Who has opened it.
            known: Finds out again; raises StatepoolError where the caller may not go on.

        Raises:
            StatepoolError: What `known` has raised, or what all streams were ended with.
        """
        if self._ended_with is not None:
            raise self._ended_with
        stream = _Stream(caller, known)
        self._streams.add(stream)
        try:
            with stream:
                yield
        finally:
            self._streams.discard(stream)

    def end(self, error: StatepoolError) -> None:
        """Ends every stream with a status, those that are yet to come too."""
        self._ended_with = error
        for stream in list(self._streams):
            stream.end(error)

    async def run(self) -> None:
        """Goes on for ever."""
        rules = self._access.rules
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if self._access.rules is not rules:
                rules = self._access.rules
                for stream in list(self._streams):
                    stream.check()
