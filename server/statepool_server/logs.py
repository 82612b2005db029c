"""Logging: structured lines on standard error."""

import io
import logging
import os
import sys
from contextvars import ContextVar
from typing import TYPE_CHECKING, Literal

import structlog
from structlog.typing import EventDict

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

CALL: ContextVar[tuple[int, str]] = ContextVar("CALL")
"""Session and request id of the call in whose context a line is logged; 0 or empty: it names none."""

_DESCRIPTOR = 2


def _add_call(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Adds session, request and trace of the call that a line belongs to; looked up only for lines that are written."""
    session_id, request_id = CALL.get((0, ""))
    if session_id:
        event.setdefault("session_id", session_id)
    if request_id:
        event.setdefault("request_id", request_id)
    trace = sys.modules.get("opentelemetry.trace")
    context = trace.get_current_span().get_span_context() if trace else None
    if context is not None and context.is_valid:
        event.setdefault("trace_id", f"{context.trace_id:032x}")
    return event


class _StandardError(io.FileIO):
    """Standard error, on which nothing depends: what cannot be written is dropped."""

    def __init__(self) -> None:
        super().__init__(_DESCRIPTOR, "w", closefd=False)

    def write(self, data: "ReadableBuffer", /) -> int:
        """Writes at once; where the reader has gone, whatever else is written to standard error goes nowhere too."""
        try:
            super().write(data)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(nowhere, _DESCRIPTOR)
            os.close(nowhere)
        except OSError:  # a full disk, for one, which may have room for the next line
            pass
        return memoryview(data).nbytes


def configure_logging(level: str, log_format: Literal["auto", "console", "json"]) -> None:
    """Sets logging up for the process.

    Args:
        level: Least level of what is logged, in lower case.
        log_format: auto is console on a terminal, else one JSON object per line.
    """
    console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        _add_call,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if console:
        shared.append(structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()))
    else:
        shared += [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=shared,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(
            io.TextIOWrapper(_StandardError(), encoding="utf-8", errors="backslashreplace", write_through=True)
        ),
        cache_logger_on_first_use=True,
    )
