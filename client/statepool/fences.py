"""Which sessions an attached process may no longer write for, and what it is doing right now."""

import copy
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from statepool.errors import SessionFencedError, StatepoolError

REMEMBERED_SESSIONS = 65536
"""Lost sessions that are remembered; passes of one lost before those ended long ago."""


@dataclass(frozen=True, slots=True)
class Fence:
    """A session is lost."""

    number: int
    """What the answer names."""
    session_id: int
    """The session."""
    epoch: int
    """What has this epoch or an earlier one is fenced."""


class Fences:
    """Passes that run and fences that came; safe to use from threads."""

    def __init__(self, last_session_id: int, live: Mapping[int, int]) -> None:
        """Begins with what was known when the process attached.

        Args:
            last_session_id: Highest session id that was given out.
            live: Epochs of the sessions that lived, by session id; any other session up to that id was lost before.
        """
        self._last_session_id = last_session_id
        self._live = live
        self._lock = threading.Condition()
        self._suspended = False
        self._running: Counter[tuple[int, int]] = Counter()
        self._lost: OrderedDict[int, int] = OrderedDict()  # session id to the last epoch that is fenced
        self._unanswered: dict[int, Fence] = {}  # by number: a fence is told again on every connection
        self._closed_by: StatepoolError | None = None

    @contextmanager
    def running(self, session_id: int, epoch: int) -> Iterator[None]:
        """Marks what is done inside as a pass of a session; waits while fences cannot come through.

        Raises:
            SessionFencedError: The session is lost.
            StatepoolError: The error given to `close`.
        """
        with self._lock:
            self._lock.wait_for(lambda: self._closed_by is not None or not self._suspended)
            if self._closed_by is not None:
                raise copy.copy(self._closed_by)
            if self._is_lost(session_id, epoch):
                raise SessionFencedError(f"epoch {epoch} of session {session_id} is fenced", field="session")
            self._running[session_id, epoch] += 1
        try:
            yield
        finally:
            with self._lock:
                self._running[session_id, epoch] -= 1
                if not self._running[session_id, epoch]:
                    del self._running[session_id, epoch]

    def add(self, fence: Fence) -> None:
        """Takes a fence: no pass that it concerns begins any more."""
        with self._lock:
            self._lost[fence.session_id] = max(fence.epoch, self._lost.pop(fence.session_id, 0))
            if len(self._lost) > REMEMBERED_SESSIONS:
                self._lost.popitem(last=False)
            self._unanswered[fence.number] = fence

    def take_quiet(self) -> list[Fence]:
        """Takes out the fences that no running pass is concerned by: they are to be answered."""
        with self._lock:
            quiet = [fence for fence in self._unanswered.values() if not self._concerns(fence)]
            for fence in quiet:
                del self._unanswered[fence.number]
            return quiet

    def suspend(self) -> None:
        """Lets no pass begin for now: a fence could not come through."""
        with self._lock:
            self._suspended = True

    def resume(self) -> None:
        """Lets passes begin again."""
        with self._lock:
            self._suspended = False
            self._lock.notify_all()

    def close(self, error: StatepoolError) -> None:
        """Lets no pass begin any more."""
        with self._lock:
            self._closed_by = error
            self._lock.notify_all()

    def _is_lost(self, session_id: int, epoch: int) -> bool:
        if session_id <= self._last_session_id and epoch < self._live.get(session_id, epoch + 1):
            return True
        return epoch <= self._lost.get(session_id, 0)

    def _concerns(self, fence: Fence) -> bool:
        return any(session == fence.session_id and epoch <= fence.epoch for session, epoch in self._running)
