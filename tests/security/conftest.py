"""Servers with TLS, real certificates, and callers of all kinds."""

import hashlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from security.authority import Authority
from service.conftest import client, pytest_runtest_makereport, server, servers
from service.servers import DEADLINE_SECONDS, Server, Servers
from statepool import Client
from statepool.security import Security

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
max-transfers = 2
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


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Makes the authority that servers and clients trust."""
    return Authority(tmp_path_factory.mktemp("authority"))


@dataclass(frozen=True)
class Secured:
    """What the server is started with that most tests share."""

    flags: tuple[str, ...]
    listen: str
    security: Security


@pytest.fixture(scope="session")
def settings(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Secured:
    """Chooses settings: certificates are wanted, tokens and tenants known, operators have a listener."""
    access = access_file(tmp_path_factory.mktemp("access"))
    flags = ("--access", str(access), "--admin-listen", f"localhost:{free_port()}", "--log-level", "debug")
    security = Security(tls=authority.tls_as("observer"))
    return Secured((*authority.server_flags(), *flags), f"localhost:{free_port()}", security)


@pytest.fixture
def secured(servers: Servers, settings: Secured) -> Server:
    """Gives a server that wants certificates, knows tokens and tenants, and has a listener for operators."""
    return servers.shared(*settings.flags, listen=settings.listen, security=settings.security)


@pytest.fixture
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
