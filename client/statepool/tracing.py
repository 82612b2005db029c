"""Spans of calls in the traces of a program that uses OpenTelemetry itself; for any other program nothing happens.

A call joins the trace of the span that is current where it is made, and its W3C context goes to the server. Where there
is no such span none is begun: what is traced, where traces go and how many are kept is the program's to decide.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from statepool.rpc import Metadata, Rpc

TRACEPARENT = "traceparent"
"""Name of the W3C trace context in a call's metadata, as of the HTTP header."""


class CallSpan:
    """Span of a call that is under way.

    Attributes:
        traceparent: Its context, for the server.
    """

    __slots__ = ("_span", "traceparent")

    def __init__(self, span: Span) -> None:
        """Takes a span that has begun."""
        context = span.get_span_context()
        self.traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
        self._span = span

    def end(self, error: Exception | None = None) -> None:
        """Ends it.

        Args:
            error: Why the call failed.
        """
        if error is not None:
            from opentelemetry.trace import StatusCode

            self._span.set_status(StatusCode.ERROR, str(error))
            self._span.set_attribute("error.type", getattr(error, "reason", "") or type(error).__name__)
        self._span.end()


def begin(called: Rpc[Any, Any]) -> CallSpan | None:
    """Begins the span of a call; None: the program is in no span that is recorded."""
    trace = sys.modules.get("opentelemetry.trace")  # a program that traces has imported it
    if trace is None or not trace.get_current_span().is_recording():
        return None
    attributes = {"rpc.system": "grpc", "rpc.service": called.service, "rpc.method": called.name}
    tracer = trace.get_tracer("statepool")
    return CallSpan(tracer.start_span(called.path[1:], kind=trace.SpanKind.CLIENT, attributes=attributes))


def span_of(called: Rpc[Any, Any], metadata: Metadata) -> AbstractContextManager[Metadata]:
    """Keeps the span of a call open; gives the call's metadata, and the span's context with it."""
    span = begin(called)
    return contextlib.nullcontext(metadata) if span is None else _open(span, metadata)


@contextlib.contextmanager
def _open(span: CallSpan, metadata: Metadata) -> Iterator[Metadata]:
    try:
        yield (*metadata, (TRACEPARENT, span.traceparent))
    except Exception as error:
        span.end(error)
        raise
    except BaseException:  # cancelled, or an iterator that was closed early
        span.end()
        raise
    else:
        span.end()
