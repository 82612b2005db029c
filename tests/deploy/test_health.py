"""Guarantee: `statepool health` exits with 0 exactly when a server says that it serves."""

import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import HealthServicer

from deploy.commands import STATEPOOL, TIMEOUT_SECONDS, run
from deploy.server_settings import DOCKER
from service.servers import Server, Servers, fast_folder


@pytest.mark.parametrize("service", ["", "statepool.v1.BlockService"])
def test_serving(server: Server, service: str) -> None:
    """A server that serves is healthy, as a whole and in each of its services."""
    answer = run("health", "--target", server.target, "--service", service)

    assert (answer.returncode, answer.stdout) == (0, "SERVING\n"), answer.stderr


def test_unknown_service(server: Server) -> None:
    """A service that the server does not have is not healthy, and the answer says so."""
    answer = run("health", "--target", server.target, "--service", "statepool.v1.NoService")

    assert answer.returncode == 1
    assert "SERVICE_UNKNOWN" in answer.stderr


def test_environment_of_a_server(server: Server) -> None:
    """A probe in a server's own environment needs no arguments, and does not take the server's settings for its own."""
    settings = {"STATEPOOL_CONFIG": str(DOCKER / "systemd" / "statepool.toml"), "STATEPOOL_MAX_TTL": "1h"}

    answer = run("health", env={"STATEPOOL_TARGET": server.target} | settings)

    assert answer.returncode == 0, answer.stderr


def test_nobody_answers(tmp_path: Path) -> None:
    """Without a server the probe fails at once, with one line."""
    answer = run("health", "--target", f"unix:{tmp_path / 'none.sock'}")

    assert answer.returncode == 1
    assert answer.stderr.count("\n") == 1
    assert "UNAVAILABLE" in answer.stderr


def test_remote_target() -> None:
    """A target on a network would be asked in the clear, which is an error of the command line."""
    assert run("health", "--target", "example.org:50051").returncode == 2


@pytest.fixture
def sick() -> Iterator[str]:
    """Runs a server whose health service says NOT_SERVING, as one that has lost a part of itself does."""
    with fast_folder() as folder, ThreadPoolExecutor(2) as threads:
        server, health = grpc.server(threads), HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
        health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        server.add_insecure_port(f"unix:{folder / 's.sock'}")
        server.start()
        yield f"unix:{folder / 's.sock'}"
        server.stop(None).wait()


def test_not_serving(sick: str) -> None:
    """A server that answers but does not serve fails the probe."""
    answer = run("health", "--target", sick)

    assert answer.returncode == 1
    assert "NOT_SERVING" in answer.stderr


def test_busy_server(tmp_path: Path) -> None:
    """A server that is too busy to shake hands at once is waited for; it is not taken for one that is not there."""
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(str(tmp_path / "s.sock"))
        busy.listen()

        answer = run("health", "--target", f"unix:{tmp_path / 's.sock'}", "--timeout", "1s")

    assert answer.returncode == 1
    assert "DEADLINE_EXCEEDED" in answer.stderr


def test_waiting(servers: Servers) -> None:
    """With --wait the probe outlasts the start of a server."""
    with fast_folder() as folder:
        target = f"unix:{folder / 's.sock'}"
        with subprocess.Popen([STATEPOOL, "health", "--target", target, "--wait", f"{TIMEOUT_SECONDS}s"]) as probe:
            servers.start(listen=target)

            assert probe.wait(TIMEOUT_SECONDS) == 0
