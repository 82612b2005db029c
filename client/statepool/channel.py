"""With which gRPC options a client connects, and what its failures say; shared by the sync and the async client."""

import time
from collections.abc import Sequence
from typing import Any

import grpc

from statepool.errors import CancelledError, StatepoolError, UnavailableError

DEFAULT_TARGET = "unix:///run/statepool/statepool.sock"
"""Where a server listens unless told otherwise."""

DEFAULT_TIMEOUT_SECONDS = 5.0
"""Deadline of a call that names none."""

LONGEST_CALL_SECONDS = 365 * 24 * 3600.0
"""Deadline of a call that is given a longer one, or none (`math.inf`): clocks do not count much further."""

RELEASE_SECONDS = 1.0
"""Deadline of the best-effort DeleteSession when a handle is closed."""

MAX_MESSAGE_BYTES = 64 * 2**20
"""Largest message either way. What a request may ask for is bounded by the pool's own limits, far below this."""

ChannelOptions = Sequence[tuple[str, Any]]
"""gRPC channel arguments."""


def channel_options(options: ChannelOptions) -> list[tuple[str, Any]]:
    """Lists the options of a channel.

    Args:
        options: The caller's own; they win.
    """
    defaults = {
        "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
        "grpc.max_send_message_length": MAX_MESSAGE_BYTES,
        "grpc.enable_retries": 0,  # see statepool.retries
        # A server that was restarted is found again within a second, not within gRPC's two minutes.
        "grpc.initial_reconnect_backoff_ms": 100,
        "grpc.min_reconnect_backoff_ms": 5000,  # despite its name, how long an attempt to connect may take
        "grpc.max_reconnect_backoff_ms": 1000,
        # A pool is next to its callers; a proxy meant for the internet would only break the way to it.
        "grpc.enable_http_proxy": 0,
    }
    return list((defaults | dict(options)).items())


def seconds_left(deadline: float) -> float:
    """Tells how many seconds are left until a moment of `time.monotonic`; 0: none."""
    return max(0.0, deadline - time.monotonic())


def call_seconds(timeout: float) -> float:
    """Tells how long a call may take.

    Args:
        timeout: The deadline that it is given, in seconds.

    Raises:
        ValueError: The deadline is negative, or not a number.
    """
    if not timeout >= 0:
        raise ValueError(f"timeout: {timeout} is no number of seconds from 0 on")
    return min(timeout, LONGEST_CALL_SECONDS)


def error_of_rpc(error: grpc.RpcError) -> StatepoolError:
    """Rebuilds the error that the server raised, or that gRPC made of a broken connection or a passed deadline."""
    from statepool.status import error_of  # google.rpc's messages, which a client that sees no error never needs

    trailers: Any = error.trailing_metadata() or ()  # pairs, in either client's own class
    return error_of(error.code().value[0], error.details() or "", trailers)


def error_of_cut_rpc(error: grpc.RpcError) -> StatepoolError:
    """Rebuilds the error of a call that nobody here has cancelled: a server that stops cancels what has not begun."""
    failure = error_of_rpc(error)
    if isinstance(failure, CancelledError):
        return UnavailableError("the server has stopped before it began with the call")
    return failure
