"""Guarantee: the commands reach a server over TLS, by certificate and by token, and say why where they cannot."""

import json
from pathlib import Path

import pytest

from deploy.commands import run
from security.authority import Authority
from security.conftest import token_of
from service.servers import Server
from statepool import Tls


def flags(target: str, tls: Tls) -> list[str]:
    """Writes the flags of a connection."""
    return ["--target", target, "--ca", str(tls.ca), "--cert", str(tls.cert), "--key", str(tls.key)]


def test_by_certificate(secured: Server, admin_target: str, authority: Authority) -> None:
    """Looking is for observers, draining is not."""
    connection = flags(secured.target, authority.tls_as("observer"))

    assert run("health", *connection).stdout == "SERVING\n"
    assert json.loads(run("info", "--json", *connection).stdout)["pool"]["model_type"] == "custom"
    assert run("blocks", *connection).returncode == 0
    assert json.loads(run("top", "--once", "--json", "--interval", "100ms", *connection).stdout)["blocks"]["capacity"]
    refused = run("drain", *flags(admin_target, authority.tls_as("observer")))
    assert (refused.returncode, "Drain is for admin here" in refused.stderr) == (1, True)


def test_load_test_by_token(secured: Server, authority: Authority, tmp_path: Path) -> None:
    """A load test connects each of its processes; what it prints has the file's name and not what is in it."""
    file = tmp_path / "token"
    file.write_text(f"{token_of('everybody')}\n", encoding="ascii")
    connection = [*flags(secured.target, authority.tls()), "--token-file", str(file)]

    answer = run("loadtest", "--duration", "300ms", "--engines", "1", "--sequences", "2", "--json", "-", *connection)

    assert answer.returncode == 0, answer.stderr
    assert token_of("everybody") not in answer.stdout + answer.stderr
    assert str(file) not in answer.stdout


def test_load_test_needs_no_more_than_its_roles(secured: Server, authority: Authority) -> None:
    """A load test does what schedulers and workers do."""
    connection = flags(secured.target, authority.tls_as("scheduler", "worker"))

    answer = run("loadtest", "--duration", "300ms", "--engines", "1", "--sequences", "2", *connection)

    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize("command", ["info", "health", "loadtest", "doctor"])
@pytest.mark.parametrize(
    ("connection", "words"),
    [
        (["--target", "pool.example:1"], "needs --ca"),
        (["--target", "/run/statepool.sock"], "needs unix:"),
        (["--target", "localhost:1", "--cert", "/nonexistent/cert.pem"], "--cert and --key"),
        (["--target", "localhost:1", "--token-file", "{token}"], "over TLS"),
        (["--target", "unix:///nonexistent", "--token-file", "{two_lines}"], "two-lines: holds no token"),
        (["--target", "localhost:1", "--token-file", "/nonexistent/token"], "--token-file /nonexistent/token: No"),
        (["--target", "pool.example:1", "--ca", "/nonexistent/ca.pem"], "--ca /nonexistent/ca.pem: No"),
    ],
)
def test_what_cannot_be(command: str, connection: list[str], words: str, tmp_path: Path) -> None:
    """Each command refuses, before it connects, what would go in the clear, and files that are not there."""
    token = tmp_path / "token"
    token.write_text("secret-token", encoding="ascii")
    two_lines = tmp_path / "two-lines"
    two_lines.write_text("secret-token\nsecret-token\n", encoding="ascii")

    answer = run(command, *(word.format(token=token, two_lines=two_lines) for word in connection))

    assert answer.returncode == 2, answer
    assert words in answer.stderr
    assert answer.stderr.count("\n") == 1
    assert "secret-token" not in answer.stdout + answer.stderr
