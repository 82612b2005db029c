"""A collector of traces: the service that OTLP exporters send to."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


@dataclass(frozen=True)
class ReceivedSpan:
    """A span as it was exported."""

    name: str
    """What it is of."""
    trace_id: str
    """Its trace."""
    span_id: str
    """Itself."""
    parent_id: str
    """Its parent; empty: none."""
    start_ns: int
    """When it began."""
    end_ns: int
    """When it ended."""
    attributes: Mapping[str, Any]
    """What else is known."""
    is_error: bool
    """Whether it failed."""
    service: str
    """Who has exported it."""


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes spans and keeps them.

    Attributes:
        spans: All that came.
        endpoint: Where exporters send to.
    """

    def __init__(self) -> None:
        self.spans: list[ReceivedSpan] = []
        self._server = grpc.server(ThreadPoolExecutor(1))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def Export(self, request: Any, _context: object) -> Any:  # noqa: N802 — the RPC's name
        """Takes spans."""
        for resource_spans in request.resource_spans:
            service = _values(resource_spans.resource.attributes)["service.name"]
            for scope_spans in resource_spans.scope_spans:
                self.spans += [_received(span, service) for span in scope_spans.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    def of(self, trace_id: str) -> list[ReceivedSpan]:
        """Lists the spans of a trace in the order of their begin."""
        return sorted((span for span in self.spans if span.trace_id == trace_id), key=lambda span: span.start_ns)

    def stop(self) -> None:
        """Ends it."""
        self._server.stop(1.0).wait()


def _received(span: Any, service: str) -> ReceivedSpan:
    return ReceivedSpan(
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        _values(span.attributes),
        span.status.code == 2,
        service,
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}
