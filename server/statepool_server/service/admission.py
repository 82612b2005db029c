"""How many calls may be under way, of everybody and of one session, and who is let in when there are too many.

A call is refused before its request is decoded. Streams that last as long as their client are counted by themselves;
calls that give something back, or that keep what is there alive, find room for as many again as all others.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator

from google.protobuf.descriptor import MethodDescriptor

from statepool.errors import OverloadedError
from statepool_server.service.flow import Flow, hint
from statepool_server.service.policies import Treatment


class Gate:
    """Lets the calls of one method in.

    Attributes:
        is_by_session: Whether a session may have only so many under way.
    """

    def __init__(self, flow: Flow, limit: int, *, is_by_session: bool = False) -> None:
        self.is_by_session = is_by_session
        self._flow = flow
        self._limit = limit

    def enter(self) -> None:
        """Counts a call in.

        Raises:
            OverloadedError: There are as many as may be.
        """
        self._flow.check(self._limit)
        self._flow.begin()

    def leave(self) -> None:
        """Counts it out."""
        self._flow.end()


class Admission:
    """Counts calls.

    Attributes:
        calls: Calls under way, without the lasting streams.
        streams: Lasting streams that are open.
    """

    def __init__(self, *, max_calls: int, max_session_calls: int, max_sessions: int, max_watchers: int) -> None:
        """Begins without a call.

        Args:
            max_calls: Calls under way.
            max_session_calls: Calls of one session among them, but those that go first.
            max_sessions: Sessions; each has two lasting streams at most, unless it opens another in place of one.
            max_watchers: Lasting streams beside those of sessions.
        """
        self.calls, self.streams = Flow("calls"), Flow("streams")
        self._max_calls = max_calls
        self._max_session_calls = max_session_calls
        self._max_streams = 2 * max_sessions + max_watchers + max_calls
        self._by_session: Counter[int] = Counter()

    def gate(self, method: MethodDescriptor, treatment: Treatment) -> Gate:
        """Makes the gate of a method."""
        if treatment is Treatment.LASTING:
            return Gate(self.streams, self._max_streams)
        if treatment is Treatment.FIRST:
            return Gate(self.calls, 2 * self._max_calls)
        names_session = "session" in method.input_type.fields_by_name and not method.client_streaming
        return Gate(self.calls, self._max_calls, is_by_session=names_session)

    @contextlib.contextmanager
    def of_session(self, session_id: int) -> Iterator[None]:
        """Counts a call of a session while it is under way.

        Raises:
            OverloadedError: The session has as many as it may have.
        """
        if self._by_session[session_id] >= self._max_session_calls:
            raise OverloadedError(
                f"{self._max_session_calls} calls of the session are under way already",
                field="session",
                retry_after=hint(self.calls.seconds_ahead),
            )
        self._by_session[session_id] += 1
        try:
            yield
        finally:
            self._by_session[session_id] -= 1
            if not self._by_session[session_id]:
                del self._by_session[session_id]
