"""Servers with TLS, real certificates, and callers of all kinds."""

import hashlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from security.authority import Authority
from service.conftest import client, pytest_runtest_makereport, server, servers
from service.servers import DEADLINE_SECONDS, Server, Servers, until
from statepool import Client, StatepoolError, UnavailableError

__all__ = ["client", "pytest_runtest_makereport", "server", "servers"]

TOKENS = {
    "operator": ("", "admin"),
    "everybody": ("", "scheduler"),
    "acme": ("acme", "scheduler"),
    "globex": ("globex", "scheduler"),
    "acme-worker": ("acme", "worker"),
    "hooli": ("hooli", "scheduler"),
    "piper": ("piper", "scheduler"),
}
"""Tenant and role of each token; a token is its name, twice."""

ACCESS = """
[tenants.acme]
max-blocks = 4
max-sessions = 2
max-calls = 2

[tenants.globex]
namespaces = ["shared", "globex/*"]

[tenants.hooli]
max-rate = 20.0

[tenants.piper]
max-rate = 20.0
"""


def token_of(name: str) -> str:
    """Writes the token of a caller."""
    return f"{name}-{name}"


def access_file(folder: Path, text: str = ACCESS) -> Path:
    """Writes an access file with all tokens."""
    path = folder / "access.toml"
    for name, (tenant, role) in TOKENS.items():
        digest = hashlib.sha256(token_of(name).encode()).hexdigest()
        text += f'\n[[tokens]]\nname = "{name}"\nroles = ["{role}"]\ntenant = "{tenant}"\nsha256 = "{digest}"\n'
    path.write_text(text, encoding="utf-8")
    return path


def free_port() -> int:
    """Finds a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(client: Client) -> None:
    """Waits until a server answers somebody whom it knows."""

    def answers() -> bool:
        try:
            client.get_server_info(timeout=1.0)
        except UnavailableError:
            return False
        except StatepoolError:
            return True
        return True

    until(answers, "the server to answer")


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Makes the authority that servers and clients trust."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def secured(servers: Servers, authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """Starts a server that wants certificates, knows tokens and tenants, and has a listener for operators."""
    pair, port = authority.server(), free_port()
    access = access_file(tmp_path_factory.mktemp("access"))
    server = servers.start(
        *("--tls-cert", str(pair.cert), "--tls-key", str(pair.key), "--tls-client-ca", str(authority.ca)),
        *("--access", str(access), "--admin-listen", f"localhost:{free_port()}", "--log-level", "debug"),
        listen=f"localhost:{port}",
    )
    with Client(server.target, tls=authority.tls_as("observer")) as client:
        wait_for(client)
    return server


@pytest.fixture(scope="session")
def admin_target(secured: Server) -> str:
    """Tells where operators call."""
    return secured.flag("--admin-listen")


@pytest.fixture
def scheduler(secured: Server, authority: Authority) -> Iterator[Client]:
    """Connects as a scheduler for all tenants, by certificate."""
    with Client(secured.target, tls=authority.tls_as("scheduler"), timeout=DEADLINE_SECONDS) as client:
        yield client


def client_of(server: Server, authority: Authority, token: str) -> Client:
    """Makes a client that is known by a token, its certificate saying nothing."""
    return Client(server.target, tls=authority.tls(), token=token_of(token), timeout=DEADLINE_SECONDS)
