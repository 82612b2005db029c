"""``statepool health``: whether a server serves; the probe of containers, supervisors and scripts."""

import time
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from statepool.channel import call_seconds
from statepool.cli.connect import HERE, Connection
from statepool.cli.failure import CommandError
from statepool.cli.options import Seconds

PAUSE_SECONDS = 0.1
"""How long to wait between two questions."""

# Not a client's: those try to connect often and briefly, while a probe must not take a busy server for a dead one.
_OPTIONS = (("grpc.enable_http_proxy", 0),)
_REASONS = {
    "DEADLINE_EXCEEDED": "somebody listens, and does not answer in time",
    "NOT_SERVING": "it drains, or a part of it has died; its log says which",
    "SERVICE_UNKNOWN": "the server has no such service",
}


def health(
    *,
    connection: Connection = HERE,
    service: str = "",
    timeout: Seconds = 3.0,
    wait: Seconds = 0.0,
) -> None:
    """Ask a server whether it serves, by the standard health service.

    Exit codes: 0 it serves, 1 it does not, or nobody answers.

    Args:
        connection: The server.
        service: Full name of one service, such as statepool.v1.BlockService. Default: the server as a whole.
        timeout: How long an answer may take.
        wait: How long to go on asking until it serves, such as 60s for a server that has just been started.
    """
    deadline = time.monotonic() + wait
    while (status := ask_health(connection, service, timeout)) != "SERVING":
        if time.monotonic() >= deadline:
            raise CommandError(f"{connection.target}: {status}: {_REASONS.get(status, 'no server answers')}")
        time.sleep(PAUSE_SECONDS)
    print(status)


def ask_health(connection: Connection, service: str, timeout: float) -> str:
    """Asks once.

    Args:
        connection: The server.
        service: Full name of one service; empty: the server as a whole.
        timeout: Seconds that the answer may take.

    Returns:
        A name of grpc.health.v1.HealthCheckResponse.ServingStatus, or of the status code where nobody answers so.

    Raises:
        CommandError: Something would be sent in the clear, or a file cannot be read.
    """
    with _channel(connection) as channel:
        try:
            answer: Any = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=service), timeout=call_seconds(timeout)
            )
        except grpc.RpcError as error:
            code = error.code()
            return "SERVICE_UNKNOWN" if code is grpc.StatusCode.NOT_FOUND else str(code.name)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def _channel(connection: Connection) -> grpc.Channel:
    security = connection.security()
    credentials = security.credentials
    options = [*_OPTIONS, *security.options]
    if credentials is None:
        return grpc.insecure_channel(connection.target, options=options)
    return grpc.secure_channel(connection.target, credentials, options=options)
