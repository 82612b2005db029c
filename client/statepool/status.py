"""Errors on the wire: an error of `statepool.errors` as ``google.rpc.Status`` in a call's trailers, and back."""

from collections.abc import Iterable

from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from statepool.errors import BY_CODE, BY_REASON, DOMAIN, StatepoolError
from statepool.v1 import types_pb2 as pb

DETAILS_KEY = "grpc-status-details-bin"
"""Trailer with the serialised ``google.rpc.Status``, as all gRPC languages read it."""

PUSHBACK_KEY = "grpc-retry-pushback-ms"
"""Trailer that tells gRPC's own retry when to come back (gRFC A6)."""

NO_RETRY = "-1"
"""Value of it that tells gRPC's own retry not to."""

MAX_MESSAGE_BYTES = 2048
"""Longest error message on the wire: trailers share one budget of 8 KiB with everything else in them."""


def trailers_of(error: StatepoolError, seconds_left: float | None = None) -> tuple[tuple[str, str | bytes], ...]:
    """Builds the trailers that carry an error.

    Args:
        error: The error; its message is cut to `MAX_MESSAGE_BYTES`.
        seconds_left: Until the call's deadline; None: it has none. A retry after it is not made: it would only hide the
            reason behind DEADLINE_EXCEEDED, and keep the caller waiting.

    Returns:
        Trailing metadata; the status code and message go beside it.
    """
    trailers: tuple[tuple[str, str | bytes], ...] = ((DETAILS_KEY, _status_of(error).SerializeToString()),)
    if error.retry_after is not None:
        is_late = seconds_left is not None and error.retry_after >= seconds_left
        trailers += ((PUSHBACK_KEY, NO_RETRY if is_late else str(max(1, round(error.retry_after * 1000)))),)
    return trailers


def message_of(error: StatepoolError) -> str:
    """Cuts an error's message to what fits into trailers."""
    return error.message.encode("utf-8", "replace")[:MAX_MESSAGE_BYTES].decode("utf-8", "ignore")


def error_of(code: int, message: str, trailers: Iterable[tuple[str, str | bytes]]) -> StatepoolError:
    """Rebuilds the error of a failed call.

    Args:
        code: gRPC status code.
        message: Its message.
        trailers: The call's trailing metadata.

    Returns:
        An instance of the class that the server raised; without (readable) details, of the class of the status code.
    """
    details = next((value for key, value in trailers if key == DETAILS_KEY and isinstance(value, bytes)), b"")
    info, retry, fields = ErrorInfo(), RetryInfo(), BadRequest()
    try:
        packed = Status.FromString(details).details
        for part in packed:
            _unpack(part, info, retry, fields)
    except DecodeError:
        info.Clear()
    cls = BY_REASON.get(info.reason) if info.domain == DOMAIN else None
    if cls is None:
        cls = BY_CODE.get(code, StatepoolError)
    field = fields.field_violations[0].field if fields.field_violations else ""
    retry_after = retry.retry_delay.ToNanoseconds() / 1e9 if retry.HasField("retry_delay") else None
    return _build(cls, message, field, retry_after, dict(info.metadata))


def error_to_wire(error: StatepoolError) -> pb.Error:
    """Writes an error that goes inside a message."""
    wire = pb.Error(
        code=error.code, reason=error.reason, message=message_of(error), field=error.field, metadata=error.metadata
    )
    if error.retry_after is not None:
        wire.retry_delay.FromNanoseconds(round(error.retry_after * 1e9))
    return wire


def error_from_wire(wire: pb.Error) -> StatepoolError:
    """Rebuilds an error that came inside a message: an instance of the class that the server raised."""
    cls = BY_REASON.get(wire.reason, BY_CODE.get(wire.code, StatepoolError))
    retry_after = wire.retry_delay.ToNanoseconds() / 1e9 if wire.HasField("retry_delay") else None
    return _build(cls, wire.message, wire.field, retry_after, dict(wire.metadata))


def _build(
    cls: type[StatepoolError], message: str, field: str, retry_after: float | None, metadata: dict[str, str]
) -> StatepoolError:
    error = cls(message, field=field, retry_after=retry_after)
    error.metadata = metadata
    return error


def _unpack(part: Any, *targets: ErrorInfo | RetryInfo | BadRequest) -> None:
    for target in targets:
        if part.Is(target.DESCRIPTOR):
            part.Unpack(target)


def _status_of(error: StatepoolError) -> Status:
    status = Status(code=error.code, message=message_of(error))
    if error.reason:
        _pack(status, ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata))
    if error.retry_after is not None:
        delay = Duration()
        delay.FromNanoseconds(round(error.retry_after * 1e9))
        _pack(status, RetryInfo(retry_delay=delay))
    if error.field:
        _pack(status, BadRequest(field_violations=[BadRequest.FieldViolation(field=error.field)]))
    return status


def _pack(status: Status, detail: ErrorInfo | RetryInfo | BadRequest) -> None:
    status.details.add().Pack(detail)
