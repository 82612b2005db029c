"""Checks of TLS: the files that it is made of, and a handshake with the server that runs."""

import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from statepool.doctor.deployment import Deployment
from statepool.doctor.findings import Finding, bad, good
from statepool.doctor.pem import check_authorities, check_pair, judge_time, names_of
from statepool.security import Tls

_EXPIRED, _WRONG_NAMES = 10, (62, 64)
"""Of OpenSSL: X509_V_ERR_CERT_HAS_EXPIRED; X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH."""


def check_tls_files(deployment: Deployment) -> Iterator[Finding]:
    """Checks the files of the server, as far as its settings are known here, and those of this caller."""
    wanted, tls = deployment.wanted, deployment.tls
    if wanted.tls_cert is not None and wanted.tls_key is not None:
        yield from check_pair("server", wanted.tls_cert, wanted.tls_key)
    if wanted.tls_client_ca is not None:
        yield from check_authorities("authority of clients", wanted.tls_client_ca)
    if tls is not None and tls.cert is not None and tls.key is not None:
        yield from check_pair("client", Path(tls.cert), Path(tls.key))
    if tls is not None and tls.ca is not None:
        yield from check_authorities("authority of servers", Path(tls.ca))


def check_tls(deployment: Deployment) -> Iterator[Finding]:
    """Checks that server and caller take each other for who they say they are."""
    if deployment.tls is None or deployment.socket_path is not None:
        return
    host, _, port = deployment.target.removeprefix("dns:///").rpartition(":")
    name = deployment.tls.server_name or host.strip("[]")
    try:
        context = _context(deployment.tls)
    except OSError:
        return  # which the check of the files says
    try:
        met = _shake_hands((host.strip("[]"), int(port)), name, context, deployment.timeout)
    except ssl.SSLError as error:
        yield _fault(deployment.target, name, error)
    except (OSError, ValueError):
        return  # nobody is there, which the check of health says
    else:
        yield _judge(deployment.target, name, met)


def check_admin_listeners(deployment: Deployment) -> Iterator[Finding]:
    """Checks that operators find a server where they are to."""
    for address, health in deployment.admin_health.items():
        if health == deployment.health == "SERVING":
            yield good("admin listener", f"{address}: SERVING")
        elif deployment.health == "SERVING":
            yield bad(
                "admin listener",
                f"{address}: {health}: no server answers, though one does at {deployment.target}",
                "--admin-listen says where it is; a Unix socket there is for the server's user alone",
            )


@dataclass(frozen=True, slots=True)
class _Met:
    """What a handshake has shown."""

    version: str
    """The version of TLS."""
    certificate: x509.Certificate
    """The server's."""
    is_heard: bool
    """Whether the server has gone on: it refuses a caller only when TLS 1.3 has begun."""


def _context(tls: Tls) -> ssl.SSLContext:
    """Loads the files of the caller.

    Raises:
        OSError: One of them cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_default_certs() if tls.ca is None else context.load_verify_locations(tls.ca)
    if tls.cert is not None:
        context.load_cert_chain(tls.cert, tls.key, password="")  # without one, it would ask at the terminal
    context.set_alpn_protocols(["h2"])
    return context


def _shake_hands(place: tuple[str, int], name: str, context: ssl.SSLContext, timeout: float) -> _Met:
    """Connects, and waits for a word of the server.

    Raises:
        OSError: There is no connection, or no trust.
    """
    with (
        socket.create_connection(place, timeout) as plain,
        context.wrap_socket(plain, server_hostname=name) as stream,
    ):
        version, shown = stream.version() or "", stream.getpeercert(binary_form=True) or b""
        is_heard = False
        with suppress(OSError):
            is_heard = bool(stream.recv(1))
        return _Met(version, x509.load_der_x509_certificate(shown), is_heard)


def _judge(target: str, name: str, met: _Met) -> Finding:
    if met.is_heard:
        names = ", ".join(names_of(met.certificate))
        return judge_time("tls", f"{met.version}, {name} is among {names}", met.certificate)
    return bad(
        "tls",
        f"{target}: refuses this caller",
        "show a certificate that the server's --tls-client-ca has signed, and that has not expired: --cert, --key",
    )


def _fault(target: str, name: str, error: ssl.SSLError) -> Finding:
    if not isinstance(error, ssl.SSLCertVerificationError):
        detail = f"{target}: {error.reason or error}: no TLS is spoken there"
        return bad("tls", detail, "leave --ca out, or give the server --tls-cert")
    detail = f"{target}: {error.verify_message}"
    if error.verify_code == _EXPIRED:
        return bad("tls", detail, "renew the server's certificate, or that of its authority; no restart is needed")
    if error.verify_code in _WRONG_NAMES:
        return bad("tls", detail, f"have {name} among its alternative names, or call it by one: --server-name")
    return bad("tls", detail, "--ca must have the authority that has signed the server's certificate")
