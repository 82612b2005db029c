"""What every call goes through: who calls, gates of draining and overload, decoding, statuses, counts, a log line."""

import asyncio
import contextlib
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

from statepool.errors import BadFieldError, Code, StatepoolError
from statepool.status import message_of, trailers_of
from statepool_server import failpoints
from statepool_server.access.callers import NOBODY, Caller, Door
from statepool_server.access.rules import EVERY_ROLE, Role
from statepool_server.histogram import Histogram
from statepool_server.logs import CALL
from statepool_server.service.admission import Gate
from statepool_server.service.core import Core
from statepool_server.service.draining import draining_error
from statepool_server.service.lasting import LastingStreams
from statepool_server.service.policies import POLICIES, Treatment
from statepool_server.service.tenancy import Tenancy

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
"""Context of a call."""
Handler: TypeAlias = Callable[[Any, Context], Awaitable[Message | None]]
"""Handles one call: takes the request (or an iterator over requests) and returns the response; a handler of a streaming
response writes to the context, messages or the bytes of such, and returns None."""

END_SECONDS = 5.0
"""What the status of a stream may take to go out: it goes behind answers that the client has not taken."""

_Admitted: TypeAlias = Callable[[Any, Context, Caller], Awaitable[Message | None]]

_UNBOUNDED = contextlib.nullcontext()
"""A no-op context, for calls that have no quota."""

_STATUS = {status.value[0]: status for status in grpc.StatusCode}
_log = structlog.get_logger("statepool.calls")


def time_remaining(context: Context) -> float | None:
    """Tells how many seconds are left until a call's deadline."""
    return context.time_remaining()  # None without a deadline, which the stubs do not know


class _Malformed:
    """Stands for a message of a stream whose bytes are no message of its type; whoever looks into it refuses it."""

    def __getattr__(self, name: str) -> NoReturn:
        raise _malformed()


class Calls:
    """Registers services on a server so that every call is treated alike.

    Attributes:
        counts: Calls answered, by (full method name, status code name).
        seconds: What calls took, by full method name; streams that last as long as their client are left out.
        lasting: Those streams.
    """

    def __init__(self, core: Core, draining: asyncio.Event) -> None:
        """Begins without services.

        Args:
            core: What the services share.
            draining: Set when nothing may begin any more.
        """
        self.counts: Counter[tuple[str, str]] = Counter()
        self.seconds: dict[str, Histogram] = {}
        self.lasting = LastingStreams(core.access)
        self._core = core
        self._draining = draining
        self._tenancy = Tenancy(core.access, core.pool, core.quotas)

    def register(
        self,
        server: grpc.aio.Server,
        service: ServiceDescriptor,
        servicer: object,
        door: Door,
        roles: frozenset[Role] = EVERY_ROLE,
    ) -> None:
        """Registers a servicer that has one `Handler` per method of the service, by the method's name.

        Args:
            server: The server.
            service: Descriptor of the service.
            servicer: The object with the handlers.
            door: Tells who calls on this server.
            roles: Roles that callers may have there.

        Raises:
            AttributeError: The servicer lacks a method.
            KeyError: Nobody has said who may call a method.
        """
        handlers = {method.name: self._method_handler(method, servicer, door, roles) for method in service.methods}
        generic = grpc.method_handlers_generic_handler(service.full_name, handlers)
        server.add_generic_rpc_handlers((generic,))

    def _method_handler(
        self, method: MethodDescriptor, servicer: object, door: Door, roles: frozenset[Role]
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        request_type, response_type = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
        handler: Handler = getattr(servicer, method.name)
        streams = "stream" if method.client_streaming else "unary", "stream" if method.server_streaming else "unary"
        build: Callable[..., grpc.RpcMethodHandler[Any, Any]] = getattr(
            grpc, f"{streams[0]}_{streams[1]}_rpc_method_handler"
        )
        return build(
            self._guarded(method, handler, door, roles),
            request_deserializer=partial(_decode, request_type) if method.client_streaming else None,
            response_serializer=_encoded if method.server_streaming else response_type.SerializeToString,
        )

    def _guarded(self, method: MethodDescriptor, handler: Handler, door: Door, roles: frozenset[Role]) -> Handler:
        name = f"{method.containing_service.full_name}/{method.name}"
        policy = POLICIES[method.containing_service.full_name][method.name].among(roles)
        gate, is_lasting = self._core.admission.gate(method, policy.treatment), policy.treatment is Treatment.LASTING
        is_beginning, is_first = policy.treatment is Treatment.BEGINNING, policy.treatment is Treatment.FIRST
        seconds = None if is_lasting else self.seconds.setdefault(name, Histogram())
        admitted = self._streamed(handler) if method.client_streaming else self._decoded(method, gate, handler)
        quotas, lasting = self._core.quotas, self.lasting

        def known(context: Context) -> Caller:
            caller = door(context)
            policy.check(caller, name)
            return caller

        async def call(request: Any, context: Context) -> Message | None:
            started_ns, code, reason, caller = time.perf_counter_ns(), "OK", "", NOBODY
            try:
                caller = known(context)
                if is_beginning and self._draining.is_set():
                    raise draining_error()
                gate.enter()
                try:
                    if is_lasting:  # now: a first message that is cut off would send it again, which gRPC refuses
                        await context.send_initial_metadata(())
                    with (
                        quotas.call(caller.tenant, is_first=is_first) if caller.tenant else _UNBOUNDED,
                        lasting.opened(caller, partial(known, context)) if is_lasting else _UNBOUNDED,
                    ):
                        response = await admitted(request, context, caller)
                    failpoints.reach("answer")
                    return response
                finally:
                    gate.leave()
            except StatepoolError as raised:
                error = self._core.refusal(raised)
                code, reason = error.code.name, error.reason
                await end_call(context, error, END_SECONDS if method.server_streaming else None)
            except asyncio.CancelledError:
                code = Code.CANCELLED.name
                raise
            except grpc.aio.InternalError:  # a write to a client that is gone, which gRPC is about to tell
                code = Code.CANCELLED.name
                raise asyncio.CancelledError from None
            except Exception:  # noqa: BLE001 — whatever it is, the caller gets a status and the server lives
                code = Code.INTERNAL.name
                _log.exception("call failed unexpectedly", method=name)
                await context.abort(grpc.StatusCode.INTERNAL, "internal error; the server's log has the details")
            finally:
                self.counts[name, code] += 1
                elapsed_ns = time.perf_counter_ns() - started_ns
                if seconds is not None:
                    seconds.observe(elapsed_ns / 1e9)
                elapsed_us = elapsed_ns // 1000
                _log.debug("call", method=name, caller=caller.name, code=code, reason=reason, elapsed_us=elapsed_us)

        return call if is_lasting else self._core.tracing.traced(name, call)

    def _streamed(self, handler: Handler) -> _Admitted:
        """Wraps a handler of a stream of requests."""

        async def call(requests: Any, context: Context, caller: Caller) -> Message | None:
            checked = self._tenancy.checked(caller, requests) if caller.tenant else requests
            return await handler(checked, context)

        return call

    def _decoded(self, method: MethodDescriptor, gate: Gate, handler: Handler) -> _Admitted:
        """Wraps a handler of one request: takes its bytes, which nobody has looked into before the call was let in."""
        request_type, admission = GetMessageClass(method.input_type), self._core.admission
        fields = method.input_type.fields_by_name
        names_session, names_request = "session" in fields, "request_id" in fields

        async def call(data: bytes, context: Context, caller: Caller) -> Message | None:
            try:
                request: Any = request_type.FromString(data)
            except DecodeError:
                raise _malformed() from None
            if names_session:
                CALL.set((request.session.session_id, request.request_id if names_request else ""))
            if caller.tenant:
                self._tenancy.check(caller, request)
            if not gate.is_by_session:
                return await handler(request, context)
            with admission.of_session(request.session.session_id):
                return await handler(request, context)

        return call


async def end_call(context: Context, error: StatepoolError, seconds: float | None) -> NoReturn:
    """Ends a call with a status, without waiting for ever for a client who does not take what stands before it.

    Args:
        context: The call.
        error: Says the status.
        seconds: How long; None: as long as it takes.
    """
    try:
        async with asyncio.timeout(seconds):
            await context.abort(_STATUS[error.code], message_of(error), trailers_of(error, time_remaining(context)))
    except TimeoutError:
        raise asyncio.CancelledError from None  # the rest is gRPC's, which keeps no more than the stream's window


def _encoded(response: Message | bytes) -> bytes:
    return response if isinstance(response, bytes) else response.SerializeToString()


def _malformed() -> BadFieldError:
    return BadFieldError("the request's bytes are not a message of its type")


def _decode(request_type: type[Message], data: bytes) -> Message | _Malformed:
    # A decoder that raises would make gRPC answer UNKNOWN; bad bytes are the caller's fault and are told so. Checking
    # for them in a layer around the requests of a stream would cost each message as much as reading it.
    try:
        return request_type.FromString(data)
    except DecodeError:
        return _Malformed()
