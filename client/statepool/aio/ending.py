"""How calls of grpc.aio that send a stream have ended.

Where a server ends such a call while the client still writes, the write that fails may replace the status which the
server has sent by its own `INTERNAL: Internal error from Core` (https://github.com/grpc/grpc/issues/36066). An `Ending`
takes the first status down as it arrives. Now and then the write is faster; then nobody knows what the server has said.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeAlias, TypeVar

import grpc
import grpc.aio

T = TypeVar("T")

SendingCall: TypeAlias = "grpc.aio.StreamUnaryCall[Any, Any] | grpc.aio.StreamStreamCall[Any, Any]"
"""A call that sends a stream."""


_OF_GRPC = "Internal error from Core"
_LOST = grpc.aio.AioRpcError(
    grpc.StatusCode.UNAVAILABLE,
    grpc.aio.Metadata(),
    grpc.aio.Metadata(),
    "the server has ended the stream; why was lost in a write that failed",
)


class Ending:
    """The first status of a call."""

    def __init__(self, call: SendingCall) -> None:
        self._first: grpc.aio.AioRpcError | None = None
        call.add_done_callback(self._ended)

    @property
    def is_lost(self) -> bool:
        """Whether the call has failed and nobody knows why."""
        return self._first is not None and self._first.details() == _OF_GRPC

    def error(self, raised: grpc.RpcError) -> grpc.RpcError:
        """Tells why the call has failed, when it has raised an error: what the server said, if anybody knows.

        Otherwise it is UNAVAILABLE: the server has ended the call, and says why when it is asked again.
        """
        error = raised if raised.code() is not grpc.StatusCode.INTERNAL or self._first is None else self._first
        return _LOST if error.details() == _OF_GRPC else error

    def _ended(self, call: SendingCall) -> None:
        code = _now(call.code())
        if code is not grpc.StatusCode.OK:
            trailers, details = _now(call.trailing_metadata()), _now(call.details())
            self._first = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailers, details)


def _now(known: Coroutine[Any, Any, T]) -> T:
    """Returns what a coroutine returns that need not wait: a call that is done knows its status."""
    try:
        known.send(None)
    except StopIteration as stop:
        value: T = stop.value
        return value
    known.close()
    raise RuntimeError("a call that is done does not know its status")
