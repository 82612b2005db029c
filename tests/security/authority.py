"""Certificates for tests: a real authority, and certificates with the names, and the age, of a test's choice."""

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from statepool import Tls

_DAY = dt.timedelta(days=1)


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, in PEM files."""

    cert: Path
    key: Path

    def replace_by(self, other: "Pair") -> None:
        """Puts another pair in the place of this one, as whoever renews certificates does: by renaming."""
        other.key.replace(self.key)
        other.cert.replace(self.cert)


class Authority:
    """Signs certificates.

    Attributes:
        ca: PEM file of its own certificate.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ca = trustme.CA(key_type=trustme.KeyType.ECDSA)
        self._count = 0
        self.ca = folder / "ca.pem"
        folder.mkdir(parents=True, exist_ok=True)
        self._ca.cert_pem.write_to_path(self.ca)

    def server(self, name: str = "localhost") -> Pair:
        """Signs a server's certificate."""
        pair, signed = self._new_pair(), self._ca.issue_cert(name)
        signed.private_key_pem.write_to_path(pair.key)
        signed.cert_chain_pems[0].write_to_path(pair.cert)
        return pair

    def server_flags(self, *names: x509.GeneralName) -> tuple[str, ...]:
        """Signs the certificate of a server that wants its callers' to be signed here, and says how to start it.

        Args:
            names: Its alternative names; none: that of this machine.
        """
        pair = self.client(*names) if names else self.server()
        return ("--tls-cert", str(pair.cert), "--tls-key", str(pair.key), "--tls-client-ca", str(self.ca))

    def client(self, *names: x509.GeneralName, days: int = 1, since: int = 30) -> Pair:
        """Signs a client's certificate.

        Args:
            names: Its alternative names.
            days: Days until it expires; below 0: since.
            since: Days for which it has been good; below 0: until it is.
        """
        pair, key, now = self._new_pair(), ec.generate_private_key(ec.SECP256R1()), dt.datetime.now(dt.UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test")])
        builder = x509.CertificateBuilder(
            x509.load_pem_x509_certificate(self._ca.cert_pem.bytes()).subject,
            subject,
            key.public_key(),
            x509.random_serial_number(),
            now - since * _DAY,
            now + days * _DAY,
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        signed = builder.sign(self._key(), hashes.SHA256())
        pair.cert.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        pair.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return pair

    def tls(self, *names: x509.GeneralName, days: int = 1) -> Tls:
        """Signs a client's certificate, and says how to use it."""
        pair = self.client(*names, days=days)
        return Tls(ca=self.ca, cert=pair.cert, key=pair.key)

    def tls_as(self, *roles: str, tenant: str = "", days: int = 1) -> Tls:
        """Signs the certificate of a caller with roles."""
        path = f"{tenant}/" if tenant else ""
        return self.tls(*(uri(f"spiffe://cluster.test/statepool/{path}{role}") for role in roles), days=days)

    def _key(self) -> ec.EllipticCurvePrivateKey:
        key = serialization.load_pem_private_key(self._ca.private_key_pem.bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return key

    def _new_pair(self) -> Pair:
        self._count += 1
        return Pair(self._folder / f"{self._count}.cert.pem", self._folder / f"{self._count}.key.pem")


def uri(text: str) -> x509.GeneralName:
    """Makes a name that is a URI."""
    return x509.UniformResourceIdentifier(text)


def dns(text: str) -> x509.GeneralName:
    """Makes a name of a host."""
    return x509.DNSName(text)
