"""The certificate that a server shows, and the authority whose certificates it takes from its callers."""

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from statepool_server.access.watched import Watched
from statepool_server.files import read_certificates, read_key


@dataclass(frozen=True, slots=True, eq=False)
class _Read:
    """What the files said when they were read, as those need it who shake hands."""

    for_grpc: grpc.ServerCertificateConfiguration
    for_http: ssl.SSLContext


class Certificates:
    """Certificates in PEM files; every new connection is given what the files say then."""

    def __init__(self, cert: Path, key: Path, client_ca: Path | None) -> None:
        """Reads the files.

        Args:
            cert: The server's certificate, followed by those of intermediate authorities.
            key: Its private key, not encrypted.
            client_ca: Authorities of callers, who then must show a certificate; None: they need none.

        Raises:
            ValueError: A file cannot be read or is not what it should be, or the key is not the certificate's.
        """
        self._cert = cert
        self._key = key
        self._client_ca = client_ca
        self._files = Watched([path for path in (cert, key, client_ca) if path is not None], self._read)

    def credentials(self) -> grpc.ServerCredentials:
        """Makes credentials for the ports of one server."""
        given = self._now()

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            nonlocal given
            if (now := self._now()) is given:
                return None
            given = now
            return now.for_grpc

        # gRPC asks before each handshake. Without an answer it goes on with what it had; the stubs do not know that.
        return grpc.dynamic_ssl_server_credentials(
            given.for_grpc,
            fetch,  # type: ignore[arg-type]
            require_client_authentication=self._client_ca is not None,
        )

    def context(self) -> ssl.SSLContext:
        """Makes a context for HTTPS, of TLS 1.3."""

        def follow(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
            connection.context = self._now().for_http  # is asked in each handshake, with or without a name

        context = self._context()
        context.sni_callback = follow
        return context

    def _now(self) -> _Read:
        self._files.refresh()
        return self._files.current

    def _read(self) -> _Read:
        cert = read_certificates("--tls-cert", self._cert)
        pair = read_key("--tls-key", self._key), cert
        roots = None if self._client_ca is None else read_certificates("--tls-client-ca", self._client_ca)
        context = self._context()  # says what is wrong with the files: gRPC would only do so at the first handshake
        return _Read(grpc.ssl_server_certificate_configuration([pair], roots), context)

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.num_tickets = 0  # a session that goes on would not be asked for its certificate again
        try:
            context.load_cert_chain(self._cert, self._key, password=_no_password)
            if self._client_ca is not None:
                context.load_verify_locations(self._client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
        except ssl.SSLError as error:
            named = f"--tls-cert {self._cert}, --tls-key {self._key}"
            named += f", --tls-client-ca {self._client_ca}" if self._client_ca is not None else ""
            reason = (error.reason or str(error)).lower().replace("_", " ")
            raise ValueError(f"{named}: {reason}") from error
        return context


def _no_password() -> str:
    raise ValueError("--tls-key: an encrypted key cannot be used")
