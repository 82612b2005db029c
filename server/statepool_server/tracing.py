"""What a server tells of calls, steps and memory work while they go on; this one tells nobody."""

import contextlib
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

Handling: TypeAlias = Callable[[Any, Any], Awaitable[Any]]
"""Answers a call: takes the request and the context of gRPC."""

_NOTHING: AbstractContextManager[None] = contextlib.nullcontext()


class Tracing:
    """No tracing; costs nothing. `statepool_server.otel` has the other kind."""

    def traced(self, _method: str, handling: Handling) -> Handling:
        """Makes every call of a method a span.

        Args:
            _method: Full name of the method.
            handling: Answers its calls.
        """
        return handling

    def step(self, _traceparent: str) -> AbstractContextManager[None]:
        """Makes a step of a stream a span.

        Args:
            _traceparent: W3C context that came with it; empty: none.
        """
        return _NOTHING

    def worked(self, _what: str, _began: float, _ended: float, _nbytes: int, _error: BaseException | None) -> None:
        """Makes memory work that has ended a span, of the call in whose context this is called.

        Args:
            _what: Its kind.
            _began: When its thread began, by `time.perf_counter`.
            _ended: When it ended.
            _nbytes: Bytes that it has moved.
            _error: Why it failed.
        """

    def close(self) -> None:
        """Tells what has not been told yet; may block for some seconds."""


NO_TRACING = Tracing()
"""Tells nobody."""
