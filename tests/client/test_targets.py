"""Guarantee: states travel in plain text only on their own machine, unless somebody says otherwise."""

from pathlib import Path

import grpc
import pytest

from statepool import AsyncClient, Client
from statepool.channel import channel_options
from statepool.security import Security, Tls

LOCAL = [
    "unix:///run/statepool/statepool.sock",
    "unix:relative.sock",
    "unix-abstract:statepool",
    "localhost:50051",
    "127.0.0.1:50051",
    "127.8.8.8:1",
    "[::1]:50051",
    "ipv4:127.0.0.1:1,127.0.0.2:1",
    "ipv6:[::1]:1",
    "dns:localhost:1",
    "dns:///localhost:1",
]

REMOTE = [
    "10.0.0.1:50051",
    "pool.example:50051",
    "localhost.example:50051",
    "[2001:db8::1]:50051",
    "0.0.0.0:50051",
    "ipv4:127.0.0.1:1,10.0.0.1:1",
    "dns:///pool.example:1",
    "xds:///localhost",
    "",
]


@pytest.mark.parametrize("target", LOCAL)
def test_plain_text_to_this_machine(target: str) -> None:
    """Unix sockets and loopback addresses, in all of gRPC's spellings, need no TLS."""
    Security().check(target)


@pytest.mark.parametrize("target", REMOTE)
def test_plain_text_to_another_machine_is_refused(target: str) -> None:
    """Anything else is refused unless TLS or insecure=True are given."""
    with pytest.raises(ValueError, match=r"needs tls=… or insecure=True"):
        Security().check(target)
    Security(insecure=True).check(target)
    Security(tls=Tls()).check(target)
    Security(tls=grpc.ssl_channel_credentials()).check(target)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("/run/statepool/statepool.sock", "the path of a socket needs unix: before it"),
        ("./statepool.sock", "the path of a socket needs unix: before it"),
        ("http://localhost:50051", "without http://"),
        ("https://pool.example:50051", "without https://"),
    ],
)
@pytest.mark.parametrize("security", [Security(), Security(insecure=True), Security(tls=Tls())])
def test_target_of_another_form(target: str, words: str, security: Security) -> None:
    """What gRPC would take for the name of a host, and never reach, is refused for what it is."""
    with pytest.raises(ValueError, match=words):
        security.check(target)


def test_tls_and_insecure_contradict_each_other() -> None:
    """Nobody is left believing that a connection is encrypted."""
    with pytest.raises(ValueError, match="contradict"):
        Security(tls=Tls(), insecure=True).check("10.0.0.1:1")


@pytest.mark.parametrize("target", ["unix:/run/s.sock", "unix:relative.sock", "unix-abstract:statepool"])
def test_token_over_a_unix_socket(target: str) -> None:
    """A Unix socket does not leave the machine, and its file says who may listen."""
    Security(token="secret").check(target)


@pytest.mark.parametrize("target", ["localhost:50051", "127.0.0.1:50051", "10.0.0.1:1", "unix"])
@pytest.mark.parametrize("insecure", [False, True])
def test_token_in_plain_text_is_refused(target: str, insecure: bool) -> None:
    """A token is never sent over TCP without TLS, whatever else is allowed: on loopback, anybody may listen."""
    with pytest.raises(ValueError, match=r"not on this machine|over TLS"):
        Security(token="secret", insecure=insecure).check(target)
    Security(token="secret", tls=Tls()).check(target)


@pytest.mark.parametrize("token", ["", "secret-token\nother", "secret-token\x7f", "sécret-token"])
def test_what_is_no_token_is_refused(token: str) -> None:
    """What no header can carry is refused when a client is made, and is not printed."""
    with pytest.raises(ValueError, match=r"^token: must be printable ASCII, in one line$"):
        Client("unix:/run/s.sock", token=token)


def test_no_token_in_what_is_printed() -> None:
    """A token stands in no repr: not in the settings', not in a client's."""
    security = Security(token="secret-token", tls=Tls())

    assert "secret-token" not in repr(security)
    assert "secret-token" not in str(security)
    with Client("unix:/run/s.sock", token="secret-token") as client:
        assert "secret-token" not in repr(client)


def test_certificate_without_its_key(tmp_path: Path) -> None:
    """Half a pair is refused before anything is connected, and so is a file that is not there."""
    (tmp_path / "cert.pem").write_text("-", encoding="ascii")
    with pytest.raises(ValueError, match="cert and key"):
        Client("pool.example:1", tls=Tls(cert=tmp_path / "cert.pem"))
    with pytest.raises(FileNotFoundError):
        Client("pool.example:1", tls=Tls(ca=tmp_path / "ca.pem"))


@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_both_clients_check(client: type[Client] | type[AsyncClient]) -> None:
    """Neither client connects in plain text by accident."""
    with pytest.raises(ValueError, match="not on this machine"):
        client("10.0.0.1:1")


def test_the_callers_options_win() -> None:
    """A channel argument of the caller replaces the client's own, and every other one stays."""
    options = dict(channel_options([("grpc.enable_http_proxy", 1), ("grpc.primary_user_agent", "me")]))

    assert options["grpc.enable_http_proxy"] == 1
    assert options["grpc.primary_user_agent"] == "me"
    assert options["grpc.max_receive_message_length"] == 64 * 2**20
