"""The one way to change the pool: every change is an *act*, which the journal records and recovery runs again.

An act is a plain function of its request and a time: it converts, checks, changes the pool whole or not at all, and
returns. What it leaves to be done off the event loop is memory work (`works`), which begins when the act has been
written down. Nothing else changes the pool, the answers that are remembered, or the work under way.
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Generic, Protocol, TypeVar

import structlog
from google.protobuf.message import Message

from statepool.errors import OverloadedError
from statepool_server import failpoints
from statepool_server.journal.encoding import decode, encode
from statepool_server.journal.journal import Journal, JournalFullError
from statepool_server.journal.segment import Record
from statepool_server.pool import Pool

T = TypeVar("T")
R = TypeVar("R")
M = TypeVar("M", bound=Message)

RETRY_SECONDS = 1.0
"""Hint to a caller that found the journal full: it takes a moment to write a snapshot, longer to find memory for it."""

_log = structlog.get_logger("statepool.journal")


class Kind(IntEnum):
    """Kinds of acts; the numbers are in journals and never change their meaning."""

    CREATE_SESSION = 1
    KEEP_ALIVE = 2
    DELETE_SESSION = 3
    EXPIRE_SESSIONS = 4
    ALLOCATE_BLOCKS = 10
    FREE_BLOCKS = 11
    RETAIN_BLOCKS = 12
    COMMIT_BLOCKS = 13
    LOOKUP_PREFIX = 14
    EVICT_BLOCKS = 15
    COPY_BLOCKS = 16
    READ_BLOCKS = 17
    WRITE_BLOCKS = 18
    STEP = 20
    STAGE_ENDED = 30
    WORK_ENDED = 31
    ATTACH = 40
    DETACH = 41
    QUIESCED = 42
    RELEASE_QUARANTINE = 43
    CONDEMN = 50
    PARDON = 51
    CREATE_TRANSFER = 60
    COMPLETE_TRANSFER = 61
    CANCEL_TRANSFER = 62
    EXPIRE_TRANSFERS = 63
    RECEIVE_TRANSFER = 64
    TRANSFER_RECEIVED = 65


class Codec(Protocol[T]):
    """Writes requests of one kind down."""

    def encode(self, request: T) -> bytes:
        """Writes a request."""

    def decode(self, data: bytes) -> T:
        """Reads it back; raises ValueError where it is none."""


class MessageCodec(Generic[M]):
    """Requests that are messages."""

    def __init__(self, kind: type[M]) -> None:
        self._kind = kind

    def encode(self, request: M) -> bytes:
        """Writes a message."""
        return request.SerializeToString()

    def decode(self, data: bytes) -> M:
        """Reads it back."""
        return self._kind.FromString(data)


class ValueCodec:
    """Requests that are plain values."""

    def __init__(self, kind: type) -> None:
        self._kind = kind

    def encode(self, request: object) -> bytes:
        """Writes a value."""
        return encode(request)

    def decode(self, data: bytes) -> Any:
        """Reads it back."""
        return decode(data, self._kind)


@dataclass(frozen=True, slots=True)
class _Act:
    run: Callable[[Any, int], Any]
    codec: Codec[Any]
    can_be_refused: bool
    proof: Callable[[Any], int]


class DivergedError(RuntimeError):
    """Running an act again came to something else than at the first time."""


class Ledger:
    """Runs acts one after the other and writes each down before anybody hears of it.

    Attributes:
        then: Called after each act, when it has been written down.
        failed_snapshots: Snapshots that could not be written.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._acts: dict[int, _Act] = {}
        self._journal: Journal | None = None
        self._snapshot: Callable[[], bytes] = bytes
        self._lacking = 0
        self.then: list[Callable[[], None]] = []
        self.failed_snapshots = 0

    def register(
        self,
        kind: Kind,
        codec: Codec[T],
        run: Callable[[T, int], R],
        *,
        can_be_refused: bool = True,
        proof: Callable[[R], int] | None = None,
    ) -> None:
        """Makes a kind of acts known.

        Args:
            kind: The kind.
            codec: Writes its requests down.
            run: The act: takes the request and the time, in nanoseconds of the monotonic clock.
            can_be_refused: Whether it is refused where the journal has little room left.
            proof: Sums up what it has come to, in 64 bits, from what it returned; None: the pool's counts do.
        """
        self._acts[kind] = _Act(run, codec, can_be_refused, proof or self._sums)

    def write_to(self, journal: Journal, snapshot: Callable[[], bytes]) -> None:
        """Writes down everything from here on.

        Args:
            journal: Where; it has begun.
            snapshot: Tells the state of everything.
        """
        self._journal, self._snapshot = journal, snapshot

    @property
    def journal(self) -> Journal | None:
        """Where everything is written down; None: nowhere."""
        return self._journal

    def perform(self, kind: Kind, request: object) -> Any:
        """Runs an act.

        Returns:
            What it returned.

        Raises:
            OverloadedError: The journal has no room left; nothing was done. Where it has none even for what cannot be
                refused, the process ends.
            StatepoolError: Whatever the act raised; nothing was done.
        """
        act, now_ns, journal = self._acts[kind], time.monotonic_ns(), self._journal
        if journal is None:
            result = act.run(request, now_ns)
        else:
            payload = act.codec.encode(request)
            if act.can_be_refused and not journal.has_room(len(payload)):
                self._lacking = max(self._lacking, len(payload))
                raise OverloadedError("the journal has no room for more requests", retry_after=RETRY_SECONDS)
            failpoints.reach("act")
            result = act.run(request, now_ns)
            failpoints.reach("journal.before")
            try:
                journal.append(Record(kind, now_ns, act.proof(result), payload))
            except JournalFullError as error:  # nobody may hear of what the next server would not know
                _log.critical("stops at once: what has happened cannot be written down", error=str(error))
                os._exit(os.EX_IOERR)
            failpoints.reach("journal.after")
            self.shorten()
        for listener in self.then:
            listener()
        return result

    def has_room(self) -> bool:
        """Tells whether the journal could take what it last had no room for."""
        if self._journal is None or not self._journal.has_room(self._lacking):
            return self._journal is None
        self._lacking = 0
        return True

    def shorten(self) -> None:
        """Has a snapshot written, if it is time, so that what was before it can be removed."""
        if self._journal is not None and self._journal.wants_snapshot:
            self._journal.turn(self._snapshot).add_done_callback(self._tell_failure)

    def repeat(self, record: Record) -> None:
        """Runs an act that a journal holds; nothing is written down, and no memory work begins.

        Raises:
            DivergedError: It is not known, is refused now, or came to something else.
        """
        act = self._acts.get(record.kind)
        if act is None:
            raise DivergedError(f"acts of kind {record.kind} are not known")
        try:
            result = act.run(act.codec.decode(record.payload), record.time_ns)
        except Exception as error:
            raise DivergedError(f"{Kind(record.kind).name}: {error}") from error
        if act.proof(result) != record.proof:
            raise DivergedError(f"{Kind(record.kind).name} came to something else")

    def _sums(self, _result: object) -> int:
        return self._pool.sums()

    def _tell_failure(self, writing: "Future[None]") -> None:
        error = writing.exception()
        if error is not None:
            self.failed_snapshots += 1
            _log.error("the journal cannot be shortened: requests will be refused when it is full", error=str(error))
