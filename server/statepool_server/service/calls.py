"""What every call goes through: decoding, the drain gate, errors to statuses, counts, one log line."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, NoReturn, TypeAlias

import grpc
import structlog
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from statepool.errors import BadFieldError, Code, DrainingError, StatepoolError
from statepool.status import message_of, trailers_of

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
"""Context of a call."""
Handler: TypeAlias = Callable[[Any, Context], Awaitable[Message | None]]
"""Handles one call: takes the request (or an iterator over requests) and returns the response; a handler of a streaming
response writes to the context and returns None."""

DRAIN_RETRY_SECONDS = 1.0
"""Hint to callers of a draining server: a restart takes about as long."""

_STATUS = {status.value[0]: status for status in grpc.StatusCode}
_ALLOWED_WHILE_DRAINING = frozenset(
    {
        *("FreeBlocks", "DeleteSession", "KeepAlive", "GetPool", "GetServerInfo", "Step", "Schedule", "ListSequences"),
        *("DetachPool", "ListAttachments", "ReleaseQuarantine"),
    }
)

_log = structlog.get_logger("statepool.calls")


def draining_error() -> DrainingError:
    """Tells a caller that the server is shutting down."""
    return DrainingError("the server is shutting down", retry_after=DRAIN_RETRY_SECONDS)


class _Malformed:
    """Stands for a request whose bytes are no message of its type; whoever looks into it refuses it."""

    def __getattr__(self, name: str) -> NoReturn:
        raise BadFieldError("the request's bytes are not a message of its type")


class Calls:
    """Registers services on a server so that every call is treated alike.

    Attributes:
        draining: Set when the server stops: new work is refused, streams that wait for their client end.
        counts: Calls answered, by (full method name, status code name).
    """

    def __init__(self) -> None:
        self.draining = asyncio.Event()
        self.counts: Counter[tuple[str, str]] = Counter()

    def register(self, server: grpc.aio.Server, service: ServiceDescriptor, servicer: object) -> None:
        """Registers a servicer that has one `Handler` per method of the service, by the method's name.

        Args:
            server: The server.
            service: Descriptor of the service.
            servicer: The object with the handlers.

        Raises:
            AttributeError: The servicer lacks a method.
        """
        handlers = {method.name: self._method_handler(method, servicer) for method in service.methods}
        generic = grpc.method_handlers_generic_handler(service.full_name, handlers)
        server.add_generic_rpc_handlers((generic,))

    def _method_handler(self, method: MethodDescriptor, servicer: object) -> "grpc.RpcMethodHandler[Any, Any]":
        request_type, response_type = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
        handler: Handler = getattr(servicer, method.name)
        streams = "stream" if method.client_streaming else "unary", "stream" if method.server_streaming else "unary"
        build: Callable[..., grpc.RpcMethodHandler[Any, Any]] = getattr(
            grpc, f"{streams[0]}_{streams[1]}_rpc_method_handler"
        )
        return build(
            self._guarded(method, handler),
            request_deserializer=partial(_decode, request_type),
            response_serializer=response_type.SerializeToString,
        )

    def _guarded(self, method: MethodDescriptor, handler: Handler) -> Handler:
        name = f"{method.containing_service.full_name}/{method.name}"
        admitted_while_draining = method.name in _ALLOWED_WHILE_DRAINING

        async def call(request: Any, context: Context) -> Message | None:
            started_ns, code, reason = time.perf_counter_ns(), "OK", ""
            try:
                if self.draining.is_set() and not admitted_while_draining:
                    raise draining_error()
                return await handler(request, context)
            except StatepoolError as error:
                code, reason = error.code.name, error.reason
                await context.abort(_STATUS[error.code], message_of(error), trailers_of(error))
            except asyncio.CancelledError:
                code = Code.CANCELLED.name
                raise
            except Exception:  # noqa: BLE001 — whatever it is, the caller gets a status and the server lives
                code = Code.INTERNAL.name
                _log.exception("call failed unexpectedly", method=name)
                await context.abort(grpc.StatusCode.INTERNAL, "internal error; the server's log has the details")
            finally:
                self.counts[name, code] += 1
                elapsed_us = (time.perf_counter_ns() - started_ns) // 1000
                _log.debug("call", method=name, code=code, reason=reason, elapsed_us=elapsed_us)

        return call


def _decode(request_type: type[Message], data: bytes) -> Message | _Malformed:
    # A decoder that raises would make gRPC answer UNKNOWN; bad bytes are the caller's fault and are told so. Checking
    # for them in a layer around the requests of a stream would cost each message as much as reading it.
    try:
        return request_type.FromString(data)
    except DecodeError:
        return _Malformed()
