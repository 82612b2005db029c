"""Guarantee: states go from server to server over TLS, both sides knowing each other, or only within a machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from security.authority import Authority, dns, uri
from security.conftest import access_file, free_port, token_of
from service.conftest import empty
from service.servers import Server, Servers
from statepool import (
    Client,
    PeerLostError,
    PeerUntrustedError,
    RoleForbiddenError,
    Session,
    StatepoolError,
)
from statepool.security import Security
from transfer.images import fill, images

LONG = 60.0


@pytest.fixture(scope="session")
def place() -> str:
    """Chooses where the source listens."""
    return f"localhost:{free_port()}"


@pytest.fixture
def source(servers: Servers, authority: Authority, place: str, shown: tuple[str, ...]) -> Server:
    """Gives a source that wants certificates."""
    return servers.shared(
        *(*shown, "--log-level", "debug"), listen=place, security=Security(tls=authority.tls_as("scheduler"))
    )


@pytest.fixture(scope="session")
def shown(authority: Authority) -> tuple[str, ...]:
    """Chooses the certificate of the source."""
    return authority.server_flags()


@pytest.fixture
def lender(source: Server) -> Iterator[Session]:
    """Opens a session at the source."""
    with source.client() as client:
        with client.create_session(LONG) as session:
            yield session
        empty(client)


@contextmanager
def taking(server: Server) -> Iterator[Session]:
    """Opens a session at a destination, and proves that nothing is left on it."""
    with server.client() as client:
        with client.create_session(LONG) as session:
            yield session
        empty(client)


def refused(lender: Session, taker: Session, source: str) -> StatepoolError:
    """Has a server receive what it must not get, and returns why; nothing stays allocated for it."""
    block = lender.allocate_blocks(1)
    transfer = lender.create_transfer(block)
    with pytest.raises(StatepoolError) as caught:
        taker.receive_transfer(transfer, source=source, timeout=5.0)
    lender.cancel_transfer(transfer)
    lender.free_blocks(block)
    assert taker.get_pool().usage.held_blocks == 0
    return caught.value


def arrives(lender: Session, taker: Session, source: str) -> bool:
    """Has a server receive a block, and tells whether it has come."""
    block = lender.allocate_blocks(1)
    received = taker.receive_transfer(lender.create_transfer(block), source=source)
    lender.free_blocks(block)
    taker.free_blocks(received.blocks)
    return len(received.blocks) == 1


def test_over_tls(servers: Servers, source: Server, lender: Session, authority: Authority) -> None:
    """A server that shows a worker's certificate is given what is lent, and both logs keep the transfer's token."""
    flags = authority.server_flags(dns("localhost"), uri("spiffe://cluster.test/statepool/worker"))
    destination = servers.start(*flags, "--allow-peer", source.target, "--log-level", "debug").wait_until_ready()
    blocks = lender.allocate_blocks(2)
    expected = fill(lender, blocks, lender.get_pool())
    transfer = lender.create_transfer(blocks)

    with taking(destination) as taker:
        received = taker.receive_transfer(transfer, source=source.target)
        assert np.array_equal(images(taker, received.blocks), expected)

    pulls = [line for line in source.log.splitlines() if "TransferService/PullBlocks" in line]
    assert len(pulls) == 2
    assert all("spiffe://cluster.test/statepool/worker" in line for line in pulls)
    for log in (source.log, destination.log):
        assert transfer.token.hex() not in log
        assert repr(transfer.token)[2:-1] not in log


WRONG: dict[str, tuple[list[str], type[StatepoolError]]] = {
    "wrong role": (["spiffe://cluster.test/statepool/observer"], RoleForbiddenError),
    "no role": (["spiffe://cluster.test/other/worker"], PeerUntrustedError),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_destination_that_may_not(
    servers: Servers, source: Server, lender: Session, authority: Authority, case: str
) -> None:
    """A server whose certificate names another role, or none, is given nothing: a transfer's token is not enough."""
    names, error = WRONG[case]
    flags = authority.server_flags(dns("localhost"), *map(uri, names))
    destination = servers.start(*flags, "--allow-peer", source.target).wait_until_ready()

    with taking(destination) as taker:
        assert isinstance(refused(lender, taker, source.target), error)


def test_a_source_that_is_another(
    servers: Servers, source: Server, lender: Session, authority: Authority, tmp_path: Path
) -> None:
    """A source with a certificate of an authority that is not --peer-ca's is not told a token."""
    flags = authority.server_flags(dns("localhost"), uri("spiffe://cluster.test/statepool/worker"))
    other = Authority(tmp_path / "other")
    destination = servers.start(*flags, "--allow-peer", source.target, "--peer-ca", str(other.ca)).wait_until_ready()

    with taking(destination) as taker:
        assert isinstance(refused(lender, taker, source.target), PeerLostError)


def test_a_source_of_another_name(servers: Servers, source: Server, lender: Session, authority: Authority) -> None:
    """A source is who its address says: a certificate for another host is not taken for it."""
    flags = authority.server_flags(dns("localhost"), uri("spiffe://cluster.test/statepool/worker"))
    address = source.target.replace("localhost", "127.0.0.1")
    destination = servers.start(*flags, "--allow-peer", address).wait_until_ready()

    with taking(destination) as taker:
        assert isinstance(refused(lender, taker, address), PeerLostError)


def test_no_downgrade(servers: Servers, authority: Authority) -> None:
    """A server with a certificate does not go on in plain text where its source does not speak TLS."""
    plain = servers.start("--insecure-loopback", "", listen=f"localhost:{free_port()}").wait_until_ready()
    flags = authority.server_flags(dns("localhost"), uri("spiffe://cluster.test/statepool/worker"))
    destination = servers.start(*flags).wait_until_ready()

    with plain.client() as client, client.create_session(LONG) as lender, taking(destination) as taker:
        assert isinstance(refused(lender, taker, plain.target), PeerLostError)
    naive = servers.start().wait_until_ready()
    with plain.client() as client, client.create_session(LONG) as lender, taking(naive) as taker:
        assert arrives(lender, taker, plain.target)


def test_by_token(servers: Servers, authority: Authority, tmp_path: Path) -> None:
    """Where a source knows callers by tokens, a server shows the one in its file, anew when it was replaced."""
    pair, access = authority.server(), access_file(tmp_path)
    source = servers.start(
        *("--tls-cert", str(pair.cert), "--tls-key", str(pair.key), "--access", str(access)),
        listen=f"localhost:{free_port()}",
        security=Security(tls=authority.tls(), token=token_of("everybody")),
    ).wait_until_ready()
    token = tmp_path / "token"
    token.write_text("a mistake", encoding="ascii")
    destination = servers.start(
        *("--peer-ca", str(authority.ca), "--peer-token-file", str(token), "--allow-peer", source.target),
        *("--log-level", "debug"),
    ).wait_until_ready()

    with source.client() as client, client.create_session(LONG) as lender, taking(destination) as taker:
        assert isinstance(refused(lender, taker, source.target), PeerUntrustedError)
        token.unlink()
        assert isinstance(refused(lender, taker, source.target), PeerLostError)
        token.write_text(token_of("everybody"), encoding="ascii")
        assert arrives(lender, taker, source.target)
    assert token_of("everybody") not in destination.log
    assert "a mistake" not in destination.log


def test_tenants_are_not_connected_to_what_is_not_listed(servers: Servers, tmp_path: Path) -> None:
    """Who acts for a tenant does not choose what on its machine the server connects to."""
    source = servers.start().wait_until_ready()
    access = ("--access", str(access_file(tmp_path)))
    anywhere = servers.start(*access).wait_until_ready()
    listed = servers.start(*access, "--allow-peer", source.target).wait_until_ready()

    with source.client() as client, client.create_session(LONG) as lender:
        with taking(anywhere) as for_all:
            assert arrives(lender, for_all, source.target)
        with Client(anywhere.target, token=token_of("acme")) as acme, acme.create_session(LONG) as taker:
            assert isinstance(refused(lender, taker, source.target), PeerUntrustedError)
        with Client(listed.target, token=token_of("acme")) as acme, acme.create_session(LONG) as taker:
            assert arrives(lender, taker, source.target)
