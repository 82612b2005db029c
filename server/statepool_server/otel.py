"""Tracing by OpenTelemetry, set up by the environment variables of its SDK, such as OTEL_EXPORTER_OTLP_ENDPOINT."""

import contextlib
import os
import time
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import grpc
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from statepool.tracing import TRACEPARENT
from statepool_server.tracing import Handling, Tracing

_W3C = TraceContextTextMapPropagator()


class OpenTelemetry(Tracing):
    """Spans of calls, steps and memory work, exported in the background over OTLP (gRPC)."""

    def __init__(self) -> None:
        resource = Resource.create(
            {
                SERVICE_NAME: os.environ.get("OTEL_SERVICE_NAME", "statepool-server"),
                SERVICE_VERSION: version("statepool"),
            }
        )
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("statepool_server")

    def traced(self, method: str, handling: Handling) -> Handling:
        """Makes every call of a method a span, with the caller's as its parent."""

        async def call(request: Any, context: Any) -> Any:
            metadata = dict(context.invocation_metadata() or ())
            with self._span(method, metadata.get(TRACEPARENT, ""), context):
                return await handling(request, context)

        return call

    @contextlib.contextmanager
    def step(self, traceparent: str) -> Iterator[None]:
        """Makes a step of a stream a span, with the caller's as its parent."""
        with self._span("statepool.v1.SequenceService/Schedule", traceparent):
            yield

    def worked(self, what: str, began: float, ended: float, nbytes: int, error: BaseException | None) -> None:
        """Makes memory work that has ended a span of the call that asked for it."""
        now_ns, now = time.time_ns(), time.perf_counter()
        start_ns, end_ns = (now_ns - round((now - moment) * 1e9) for moment in (began, ended))
        span = self._tracer.start_span(what, start_time=start_ns, attributes={"statepool.bytes": nbytes})
        if error is not None:
            span.set_status(StatusCode.ERROR, str(error))
        span.end(end_ns)

    def close(self) -> None:
        """Exports what is left."""
        self._provider.shutdown()

    @contextlib.contextmanager
    def _span(self, method: str, traceparent: str, context: Any = None) -> Iterator[None]:
        service, _, name = method.partition("/")
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
        parent = _W3C.extract({TRACEPARENT: traceparent}, Context())
        span = self._tracer.start_span(method, parent, SpanKind.SERVER, attributes)
        try:
            with trace.use_span(span, record_exception=False, set_status_on_exception=False):
                yield
        finally:
            code = None if context is None else context.code()
            if code not in (None, 0, grpc.StatusCode.OK):
                span.set_attribute("rpc.grpc.status_code", code.value[0])
                span.set_status(StatusCode.ERROR, context.details() or "")
            span.end()
