"""Guarantee: `statepool doctor` lays faults of the caller's own files at the caller's door, not at the server's."""

from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives import serialization

from deploy.commands import Report
from security.authority import Authority
from security.test_doctor import of_caller
from service.servers import Server
from statepool import Tls


def _key_of_another(authority: Authority) -> Tls:
    tls = authority.tls_as("observer")
    return Tls(ca=tls.ca, cert=tls.cert, key=authority.server().key)


def _key_in_a_cipher(authority: Authority) -> Tls:
    tls = authority.tls_as("observer")
    pair = authority.server()
    key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    pair.key.write_bytes(key.private_bytes(*form, serialization.BestAvailableEncryption(b"secret")))
    return Tls(ca=tls.ca, cert=tls.cert, key=pair.key)


def _no_authority(authority: Authority) -> Tls:
    tls = authority.tls_as("observer")
    return Tls(ca=tls.key, cert=tls.cert, key=tls.key)


@pytest.mark.parametrize(
    ("make", "check", "words"),
    [
        (_key_of_another, "client key", "not the certificate's"),
        (_key_in_a_cipher, "client key", "encrypted"),
        (_no_authority, "authority of servers", "not a certificate"),
    ],
)
def test_faults_of_the_caller(
    secured: Server, authority: Authority, make: Callable[[Authority], Tls], check: str, words: str
) -> None:
    """Files that no handshake can be made with are told as such, and nothing is said about the server's TLS."""
    report = Report(*of_caller(secured.target, make(authority)), "--timeout", "2s")

    assert words in report.findings[check]["detail"]
    assert report.verdict("tls") == ""
