"""The certificate that a server shows, and the authority whose certificates it takes from its callers."""

import ssl
from pathlib import Path

import grpc

from statepool_server.access.watched import Watched


class Certificates:
    """Certificates in PEM files; every new connection is given what the files say then."""

    def __init__(self, cert: Path, key: Path, client_ca: Path | None) -> None:
        """Reads the files.

        Args:
            cert: The server's certificate, followed by those of intermediate authorities.
            key: Its private key, not encrypted.
            client_ca: Authorities of callers, who then must show a certificate; None: they need none.

        Raises:
            OSError: A file cannot be read.
            ValueError: A file is not what it should be, or the key is not the certificate's.
        """
        self._cert = cert
        self._key = key
        self._client_ca = client_ca
        self._files = Watched([path for path in (cert, key, client_ca) if path is not None], self._read)

    def credentials(self) -> grpc.ServerCredentials:
        """Makes credentials for a port."""
        # gRPC asks before each handshake. Without an answer it goes on with what it had; the stubs do not know that.
        fetch = self._files.refresh
        return grpc.dynamic_ssl_server_credentials(
            self._files.current,
            fetch,  # type: ignore[arg-type]
            require_client_authentication=self._client_ca is not None,
        )

    def _read(self) -> grpc.ServerCertificateConfiguration:
        self._check()
        roots = None if self._client_ca is None else self._client_ca.read_bytes()
        return grpc.ssl_server_certificate_configuration([(self._key.read_bytes(), self._cert.read_bytes())], roots)

    def _check(self) -> None:
        """Finds out what is wrong with the files: gRPC would only say that something is, at the first handshake."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self._cert, self._key, password=_no_password)
            if self._client_ca is not None:
                context.load_verify_locations(self._client_ca)
        except ssl.SSLError as error:
            named = f"tls-cert {self._cert}, tls-key {self._key}, tls-client-ca {self._client_ca}"
            raise ValueError(f"{named}: {error.reason or error}") from error


def _no_password() -> str:
    raise ValueError("tls-key: an encrypted key cannot be used")
