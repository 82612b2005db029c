"""Guarantee: states travel in plain text only on their own machine, unless somebody says otherwise."""

import grpc
import pytest

from statepool import AsyncClient, Client
from statepool.channel import channel_options, check_security

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
    check_security(target, None, insecure=False)


@pytest.mark.parametrize("target", REMOTE)
def test_plain_text_to_another_machine_is_refused(target: str) -> None:
    """Anything else is refused unless credentials or insecure=True are given."""
    with pytest.raises(ValueError, match=r"needs credentials=… \(TLS\) or insecure=True"):
        check_security(target, None, insecure=False)
    check_security(target, None, insecure=True)
    check_security(target, grpc.ssl_channel_credentials(), insecure=False)


def test_credentials_and_insecure_contradict_each_other() -> None:
    """Nobody is left believing that a connection is encrypted."""
    with pytest.raises(ValueError, match="contradict"):
        check_security("10.0.0.1:1", grpc.ssl_channel_credentials(), insecure=True)


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
