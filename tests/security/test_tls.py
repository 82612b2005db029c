"""Guarantee: over TCP there is TLS only, for whom the authority knows, and certificates change without a restart."""

import re
import socket
import ssl
import warnings
from pathlib import Path

import grpc
import pytest
from cryptography import x509

from security.authority import Authority
from security.conftest import free_port
from service.raw import Stubs, refusal_of
from service.servers import DEADLINE_SECONDS, Server, Servers, until
from statepool import (
    AsyncClient,
    Client,
    DeadlineExceededError,
    PeerUntrustedError,
    StatepoolError,
    Tls,
    UnavailableError,
)
from statepool.security import Security
from statepool.v1 import pool_pb2
from statepool_server.access.certificates import Certificates

PATIENCE_SECONDS = 1.0
"""Deadline of a call that cannot succeed; a client goes on trying to connect until then."""
NO_CONNECTION = (UnavailableError, DeadlineExceededError)
"""What such a call ends with; the second, where a busy machine has not got to an answer within the deadline."""


def refused(target: str, tls: Tls | None) -> StatepoolError:
    """Makes a call that must not get through, and returns why; without TLS, in plain text."""
    client = Client(target, tls=tls, insecure=tls is None, timeout=PATIENCE_SECONDS)
    with client, pytest.raises(NO_CONNECTION) as caught:
        client.get_pool()
    assert not caught.value.reason, "a server answered"
    return caught.value


def test_trusted_client_is_served(secured: Server, scheduler: Client) -> None:
    """A certificate of the authority with a role is enough for everything that the role may."""
    with scheduler.create_session(60.0) as session:
        blocks = session.allocate_blocks(2)
        session.write_blocks(blocks, bytes(2 * scheduler.get_pool().block_bytes))
        assert sum(len(chunk.data) for chunk in session.read_blocks(blocks)) == 2 * scheduler.get_pool().block_bytes


async def test_trusted_async_client_is_served(secured: Server, authority: Authority) -> None:
    """The async client does the same."""
    async with (
        AsyncClient(secured.target, tls=authority.tls_as("scheduler"), timeout=DEADLINE_SECONDS) as client,
        await client.create_session(60.0) as session,
    ):
        assert len(await session.allocate_blocks(2)) == 2


def test_client_of_another_authority(secured: Server, authority: Authority, tmp_path: Path) -> None:
    """A certificate of an unknown authority ends the handshake, whatever it says."""
    stranger = Authority(tmp_path).tls_as("admin", "scheduler")

    refused(secured.target, Tls(ca=authority.ca, cert=stranger.cert, key=stranger.key))


def test_client_without_a_certificate(secured: Server, authority: Authority) -> None:
    """Without a certificate there is no handshake: that is mTLS."""
    refused(secured.target, Tls(ca=authority.ca))


def test_expired_client(secured: Server, authority: Authority) -> None:
    """A certificate that was good until yesterday is not good today."""
    names = x509.UniformResourceIdentifier("spiffe://cluster.test/statepool/scheduler")

    refused(secured.target, authority.tls(names, days=-1))


def test_server_of_another_authority(secured: Server, authority: Authority, tmp_path: Path) -> None:
    """A client that does not know the server's authority does not talk to it."""
    known = authority.tls_as("scheduler")

    refused(secured.target, Tls(ca=Authority(tmp_path).ca, cert=known.cert, key=known.key))


def test_server_of_another_name(secured: Server, authority: Authority) -> None:
    """A server whose certificate has another name than was asked for is not the server."""
    known = authority.tls_as("scheduler")

    refused(secured.target, Tls(ca=known.ca, cert=known.cert, key=known.key, server_name="pool.example"))


def test_plain_text_to_a_tls_port(secured: Server) -> None:
    """A TLS port does not answer plain text."""
    refused(secured.target, None)


def test_tls_to_a_plain_text_port(servers: Servers, authority: Authority) -> None:
    """A client that wants TLS does not go on without it."""
    server = servers.start("--insecure-loopback", "", listen=f"localhost:{free_port()}").wait_until_ready()

    refused(server.target, authority.tls_as("scheduler"))


def shakes_hands(server: Server, tls: Tls, version: ssl.TLSVersion) -> bool:
    """Tells whether a server speaks a version of TLS with a client that it knows."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(Path(str(tls.ca)))
    context.load_cert_chain(Path(str(tls.cert)), Path(str(tls.key)))
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.set_alpn_protocols(["h2"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = version
    host, _, port = server.target.rpartition(":")
    with socket.create_connection((host, int(port)), DEADLINE_SECONDS) as plain:
        try:
            context.wrap_socket(plain, server_hostname=host).close()
        except OSError:
            return False
        return True


def test_old_protocol_versions(secured: Server, authority: Authority) -> None:
    """TLS 1.2 and 1.3 are spoken, TLS 1.1 is not."""
    tls = authority.tls_as("observer")

    assert shakes_hands(secured, tls, ssl.TLSVersion.TLSv1_3)
    assert shakes_hands(secured, tls, ssl.TLSVersion.TLSv1_2)
    assert not shakes_hands(secured, tls, ssl.TLSVersion.TLSv1_1)


def test_token_over_a_loopback_port_is_not_looked_at(servers: Servers, tmp_path: Path) -> None:
    """In plain text a token gives nothing: whoever listens on the loopback has it too."""
    access = tmp_path / "access.toml"
    access.write_text("", encoding="utf-8")
    server = servers.start(
        *("--insecure-loopback", "", "--access", str(access), "--local-roles", "none"),
        listen=f"localhost:{free_port()}",
    )
    with grpc.insecure_channel(server.target) as channel:
        grpc.channel_ready_future(channel).result(DEADLINE_SECONDS)
        sent = (("authorization", "Bearer anything"),)
        error = refusal_of(lambda: Stubs(channel).pool.GetPool(pool_pb2.GetPoolRequest(), metadata=sent))

    assert isinstance(error, PeerUntrustedError)
    assert "anything" not in server.log


class Renewed:
    """A server whose files of certificates a test may replace."""

    def __init__(self, servers: Servers, authority: Authority, folder: Path) -> None:
        self.pair = authority.server()
        self.ca = folder / "client-ca.pem"
        self.ca.write_bytes(authority.ca.read_bytes())
        self.server = servers.start(
            *("--tls-cert", str(self.pair.cert), "--tls-key", str(self.pair.key), "--tls-client-ca", str(self.ca)),
            listen=f"localhost:{free_port()}",
            security=Security(tls=authority.tls_as("observer")),
        ).wait_until_ready()

    def knows(self, tls: Tls) -> bool:
        """Tells whether a new connection gets through."""
        options = [("grpc.use_local_subchannel_pool", 1)]  # else an earlier client's connection would be used
        with Client(self.server.target, tls=tls, timeout=PATIENCE_SECONDS, options=options) as client:
            try:
                client.get_pool()
            except NO_CONNECTION:
                return False
            return True


@pytest.fixture
def renewed(servers: Servers, authority: Authority, tmp_path: Path) -> Renewed:
    """Starts a server for one test."""
    return Renewed(servers, authority, tmp_path)


def test_certificate_is_renewed_without_a_restart(renewed: Renewed, authority: Authority, tmp_path: Path) -> None:
    """New connections get a new certificate; what runs on an old connection goes on; a bad file changes nothing."""
    new, tls = Authority(tmp_path / "new"), authority.tls_as("scheduler")
    of_new = Tls(ca=new.ca, cert=tls.cert, key=tls.key)
    with Client(renewed.server.target, tls=tls, timeout=DEADLINE_SECONDS) as client:
        session = client.create_session(60.0)
        assert renewed.knows(tls)
        assert not renewed.knows(of_new)

        renewed.pair.replace_by(new.server())

        until(lambda: renewed.knows(of_new), "the new certificate to be shown")
        assert not renewed.knows(tls)
        assert len(session.allocate_blocks(1)) == 1
        session.close()
    renewed.pair.cert.write_text("no certificate", encoding="ascii")
    until(lambda: renewed.knows(of_new) and "not read anew" in renewed.server.log, "the bad file to be noticed")
    assert renewed.knows(of_new)


def test_authority_of_clients_is_replaced_without_a_restart(
    renewed: Renewed, authority: Authority, tmp_path: Path
) -> None:
    """When the authority of clients is replaced, certificates of the former one no longer open a connection."""
    new = Authority(tmp_path / "new").tls_as("scheduler")
    old, of_new = authority.tls_as("scheduler"), Tls(ca=authority.ca, cert=new.cert, key=new.key)
    assert renewed.knows(old)
    assert not renewed.knows(of_new)

    fresh = tmp_path / "fresh.pem"
    fresh.write_bytes((tmp_path / "new" / "ca.pem").read_bytes())
    fresh.replace(renewed.ca)

    until(lambda: renewed.knows(of_new), "the new authority to be known")
    assert not renewed.knows(old)


def test_files_that_are_not_what_they_should_be(authority: Authority, tmp_path: Path) -> None:
    """A file that holds something else, or another's key, is named with its setting."""
    pair, other, nothing = authority.server(), authority.server(), tmp_path / "nothing"
    nothing.write_text("nothing", encoding="ascii")
    wrong = {
        (pair.key, pair.cert, authority.ca): f"--tls-cert {pair.key}: holds no certificate in PEM",
        (pair.cert, pair.cert, authority.ca): f"--tls-key {pair.cert}: holds no private key in PEM",
        (pair.cert, pair.key, nothing): f"--tls-client-ca {nothing}: holds no certificate in PEM",
        (pair.cert, tmp_path, authority.ca): f"--tls-key {tmp_path}: Is a directory",
        (
            pair.cert,
            other.key,
            authority.ca,
        ): f"--tls-key {other.key}, --tls-client-ca {authority.ca}: key values mismatch",
    }
    for (cert, key, client_ca), words in wrong.items():
        with pytest.raises(ValueError, match=re.escape(words)):
            Certificates(cert, key, client_ca)
