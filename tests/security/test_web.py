"""Guarantee: beyond loopback, metrics and the status page are shown over TLS only, and only to who may have them."""

import http.client
import json
import socket
import ssl
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from security.authority import Authority
from security.conftest import access_file, free_port, token_of
from service.servers import DEADLINE_SECONDS, Server, Servers, until
from statepool import Tls
from statepool.security import Security
from statepool_server.web import HANDSHAKE_SECONDS, MAX_CONNECTIONS, MAX_HEAD_BYTES

PAGES = ("/", "/page.js", "/metrics", "/status.json")
NETWORK = ("--metrics-listen", "0.0.0.0:0")


def port_of(server: Server) -> int:
    """Finds the port of a server's HTTP listener."""
    lines = (json.loads(line) for line in server.log.splitlines() if line.startswith("{"))
    return next(int(line["metrics_port"]) for line in lines if line.get("event") == "serving")


def get(server: Server, tls: Tls | None, path: str = "/metrics", token: str | None = None) -> int:
    """Gets a page, over TLS or in plain text, and returns the status; a refused handshake raises OSError."""
    connection = http.client.HTTPConnection("localhost", port_of(server), timeout=DEADLINE_SECONDS)
    if tls is not None:
        connection = http.client.HTTPSConnection(
            "localhost", port_of(server), timeout=DEADLINE_SECONDS, context=context_of(tls)
        )
    try:
        connection.request("GET", path, headers={} if token is None else {"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        body = answer.read()
        assert bool(body) == (answer.status == http.HTTPStatus.OK)
        return answer.status
    finally:
        connection.close()


def context_of(tls: Tls) -> ssl.SSLContext:
    """Does by the standard library what `Tls` does by gRPC."""
    context = ssl.create_default_context(cafile=str(tls.ca))
    if tls.cert is not None:
        context.load_cert_chain(str(tls.cert), str(tls.key))
    return context


@pytest.fixture(scope="session")
def flags(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Chooses the settings of the server that most tests share."""
    return (*authority.server_flags(), *NETWORK, "--access", str(access_file(tmp_path_factory.mktemp("access"))))


@pytest.fixture
def watched(servers: Servers, flags: tuple[str, ...]) -> Server:
    """Gives a server whose HTTP listener is on the network."""
    return servers.shared(*flags)


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("role", ["observer", "admin"])
def test_who_may_look(watched: Server, authority: Authority, role: str, page: str) -> None:
    """Observers and admins get every page."""
    assert get(watched, authority.tls_as(role), page) == http.HTTPStatus.OK


@pytest.mark.parametrize("page", [*PAGES, "/nothing"])
@pytest.mark.parametrize("role", ["scheduler", "worker"])
def test_who_may_not(watched: Server, authority: Authority, role: str, page: str) -> None:
    """Others get none, and are not told which there are."""
    assert get(watched, authority.tls_as(role), page) == http.HTTPStatus.FORBIDDEN


def test_tenants_may_not(watched: Server, authority: Authority) -> None:
    """The pages span tenants."""
    assert get(watched, authority.tls_as("observer", tenant="acme")) == http.HTTPStatus.FORBIDDEN


def test_by_token(watched: Server, authority: Authority) -> None:
    """A token tells who asks, and goes before the certificate, as everywhere; a wrong one is not written to the log."""
    assert get(watched, authority.tls(), token=token_of("operator")) == http.HTTPStatus.OK
    assert get(watched, authority.tls_as("observer"), token=token_of("acme")) == http.HTTPStatus.FORBIDDEN
    assert get(watched, authority.tls_as("observer"), token="a guess") == http.HTTPStatus.UNAUTHORIZED
    assert get(watched, authority.tls()) == http.HTTPStatus.UNAUTHORIZED
    assert "a guess" not in watched.log


def test_who_gets_no_connection(watched: Server, authority: Authority, tmp_path: Path) -> None:
    """Without a certificate, with another authority's or an expired one, and in plain text, nothing is answered."""
    stranger = Authority(tmp_path).tls_as("observer")
    expired = authority.tls(days=-1)
    for tls in (
        Tls(ca=authority.ca),
        Tls(ca=authority.ca, cert=stranger.cert, key=stranger.key),
        expired,
        stranger,
    ):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            get(watched, tls)
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        get(watched, None)


def test_no_older_protocol(watched: Server, authority: Authority) -> None:
    """The listener speaks TLS 1.3, in which nobody on the way sees the certificate of a caller."""
    tls = authority.tls_as("observer")
    assert get(watched, tls) == http.HTTPStatus.OK
    context = context_of(tls)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    connection = http.client.HTTPSConnection("localhost", port_of(watched), timeout=DEADLINE_SECONDS, context=context)
    with pytest.raises(ssl.SSLError):
        connection.request("GET", "/metrics")
    connection.close()


def test_who_does_not_shake_hands(watched: Server, authority: Authority) -> None:
    """A peer that connects and says nothing is cut off, holds nobody up meanwhile, and leaves no trouble in the log."""
    with ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection(("localhost", port_of(watched)), DEADLINE_SECONDS))
            for _ in range(MAX_CONNECTIONS + 1)
        ]
        assert get(watched, authority.tls_as("observer")) == http.HTTPStatus.OK
        began = time.monotonic()
        assert [peer.recv(1) for peer in silent] == [b""] * len(silent)
        assert time.monotonic() - began < 4 * HANDSHAKE_SECONDS


def test_what_is_no_request(watched: Server, authority: Authority) -> None:
    """Heads without an end, and bytes that are no HTTP, are refused behind TLS as without it."""
    context = context_of(authority.tls_as("observer"))
    for sent, status in (
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 2 * MAX_HEAD_BYTES, b"HTTP/1.1 431"),
        (b"\x00" * 64 + b"\r\n\r\n", b"HTTP/1.1 400"),
        (b"POST /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"HTTP/1.1 405"),
    ):
        with (
            socket.create_connection(("localhost", port_of(watched)), DEADLINE_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as stream,
        ):
            stream.sendall(sent)
            assert stream.recv(len(status)) == status


def test_tokens_alone(servers: Servers, authority: Authority, tmp_path: Path) -> None:
    """Without an authority of callers nobody needs a certificate, and nobody gets anything without a token."""
    pair = authority.server()
    server = servers.start(
        *("--tls-cert", str(pair.cert), "--tls-key", str(pair.key), "--access", str(access_file(tmp_path))), *NETWORK
    ).wait_until_ready()

    assert get(server, Tls(ca=authority.ca), token=token_of("operator")) == http.HTTPStatus.OK
    assert get(server, Tls(ca=authority.ca)) == http.HTTPStatus.UNAUTHORIZED
    tls = authority.tls_as("observer")
    assert get(server, tls) == http.HTTPStatus.UNAUTHORIZED  # nobody has vouched for that certificate


@pytest.mark.parametrize("how", [("--metrics-listen", "127.0.0.1:0"), (*NETWORK, "--insecure-metrics", "")])
def test_in_plain_text(servers: Servers, flags: tuple[str, ...], how: tuple[str, ...]) -> None:
    """On loopback, and elsewhere where the operator says so, whoever can connect may look, TLS or not for gRPC."""
    server = servers.start(*flags, *how).wait_until_ready()

    assert all(get(server, None, page) == http.HTTPStatus.OK for page in PAGES)


def test_every_listener_gets_a_renewed_certificate(servers: Servers, authority: Authority, tmp_path: Path) -> None:
    """All who share the files follow them: callers' listener, operators' listener, and that for HTTP."""
    pair, ca, listen, admin = authority.server(), tmp_path / "ca.pem", free_port(), free_port()
    ca.write_bytes(authority.ca.read_bytes())
    server = servers.start(
        *("--tls-cert", str(pair.cert), "--tls-key", str(pair.key), "--tls-client-ca", str(ca)),
        *(*NETWORK, "--admin-listen", f"localhost:{admin}"),
        listen=f"localhost:{listen}",
        security=Security(tls=authority.tls_as("observer")),
    ).wait_until_ready()
    places = (listen, admin, port_of(server))
    new = Authority(tmp_path / "new")
    old = authority.tls_as("observer")
    assert [is_shown(port, old, authority.ca) for port in places] == [True, True, True]

    pair.replace_by(new.server())

    until(lambda: is_shown(listen, old, new.ca), "the new certificate to be shown")
    assert [is_shown(port, old, new.ca) for port in places] == [True, True, True]
    assert get(server, Tls(ca=new.ca, cert=old.cert, key=old.key)) == http.HTTPStatus.OK
    ca.write_bytes(new.ca.read_bytes())
    of_new = new.tls_as("observer")
    until(lambda: answers(server, of_new), "the new authority of callers to be known")
    assert not answers(server, Tls(ca=new.ca, cert=old.cert, key=old.key))


def is_shown(port: int, tls: Tls, ca: Path) -> bool:
    """Tells whether a new connection is shown a certificate of an authority."""
    context = context_of(Tls(ca=ca, cert=tls.cert, key=tls.key))
    context.set_alpn_protocols(["h2", "http/1.1"])
    with socket.create_connection(("localhost", port), DEADLINE_SECONDS) as plain:
        try:
            context.wrap_socket(plain, server_hostname="localhost").close()
        except ssl.SSLCertVerificationError:
            return False
        return True


def answers(server: Server, tls: Tls) -> bool:
    """Tells whether a new connection gets the metrics."""
    try:
        return get(server, tls) == http.HTTPStatus.OK
    except OSError:
        return False
