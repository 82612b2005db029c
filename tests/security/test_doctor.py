"""Guarantee: `statepool doctor` names what is wrong with TLS, its files and its names, and finds nothing wrong else."""

from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from deploy.commands import Report
from security.authority import Authority, Pair, dns, uri
from security.conftest import free_port
from service.servers import Server, Servers
from statepool import Tls
from statepool.security import Security

NOBODY = ("--target", "unix:/nowhere/s.sock")
FILES = {"server certificate", "server key", "authority of clients"}


def of_server(pair: Pair, client_ca: Path | None = None) -> tuple[str, ...]:
    """Writes the settings of a server."""
    ca = () if client_ca is None else ("--tls-client-ca", str(client_ca))
    return ("--tls-cert", str(pair.cert), "--tls-key", str(pair.key), *ca)


def of_caller(target: str, tls: Tls) -> tuple[str, ...]:
    """Writes how to call a server."""
    pair = () if tls.cert is None else ("--cert", str(tls.cert), "--key", str(tls.key))
    return ("--target", target, "--ca", str(tls.ca), *pair)


def test_all_is_well(secured: Server, authority: Authority, admin_target: str) -> None:
    """A server behind TLS is examined to the bottom, with its files and those of the caller."""
    pair = Pair(Path(secured.flag("--tls-cert")), Path(secured.flag("--tls-key")))
    pair.key.chmod(0o600)
    tls = authority.tls_as("observer", days=60)
    Path(str(tls.key)).chmod(0o600)
    report = Report(
        *of_caller(secured.target, tls),
        *of_server(pair, authority.ca),
        *("--admin-listen", admin_target),
    )

    assert (report.exit_code, report.failures()) == (0, [])
    checked = {check for check, finding in report.findings.items() if finding["verdict"] == "ok"}
    assert checked >= FILES | {"client certificate", "client key", "authority of servers", "tls", "admin listener"}
    assert "TLSv1.3, localhost is among localhost" in report.findings["tls"]["detail"]
    assert "spiffe://cluster.test/statepool/observer" in report.findings["client certificate"]["detail"]


def _expired(authority: Authority, _folder: Path) -> tuple[str, ...]:
    return of_server(authority.client(dns("localhost"), days=-1))


def _expires_soon(authority: Authority, _folder: Path) -> tuple[str, ...]:
    return of_server(authority.client(dns("localhost"), days=10))


def _not_yet(authority: Authority, _folder: Path) -> tuple[str, ...]:
    return of_server(authority.client(dns("localhost"), days=40, since=-3))


def _nameless(authority: Authority, _folder: Path) -> tuple[str, ...]:
    return of_server(authority.client(days=60))


def _missing(authority: Authority, folder: Path) -> tuple[str, ...]:
    return of_server(Pair(folder / "none.pem", authority.server().key))


def _no_certificate(authority: Authority, folder: Path) -> tuple[str, ...]:
    (folder / "cert.pem").write_text("no certificate", encoding="ascii")
    return of_server(Pair(folder / "cert.pem", authority.server().key))


def _disordered(authority: Authority, folder: Path) -> tuple[str, ...]:
    pair, other = authority.server(), Authority(folder / "other")
    pair.cert.write_bytes(pair.cert.read_bytes() + other.ca.read_bytes())
    return of_server(pair)


def _of_another(authority: Authority, _folder: Path) -> tuple[str, ...]:
    return of_server(Pair(authority.server().cert, authority.server().key))


def _no_key(authority: Authority, _folder: Path) -> tuple[str, ...]:
    pair = authority.server()
    return of_server(Pair(pair.cert, pair.cert))


def _encrypted(authority: Authority, _folder: Path) -> tuple[str, ...]:
    pair = authority.server()
    key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    pair.key.write_bytes(key.private_bytes(*form, serialization.BestAvailableEncryption(b"secret")))
    return of_server(pair)


def _open_key(authority: Authority, _folder: Path) -> tuple[str, ...]:
    pair = authority.server()
    pair.key.chmod(0o644)
    return of_server(pair)


def _no_authority(authority: Authority, _folder: Path) -> tuple[str, ...]:
    pair = authority.server()
    return of_server(pair, pair.cert)


FAULTS: dict[str, tuple[Callable[[Authority, Path], tuple[str, ...]], str, str, str]] = {
    "expired": (_expired, "server certificate", "failure", "expired on"),
    "expires soon": (_expires_soon, "server certificate", "warning", "(9 days)"),
    "not good yet": (_not_yet, "server certificate", "failure", "on only"),
    "no names": (_nameless, "server certificate", "failure", "names nobody"),
    "no file": (_missing, "server certificate", "failure", "No such file"),
    "no certificate": (_no_certificate, "server certificate", "failure", "not a certificate"),
    "chain in disorder": (_disordered, "server certificate", "failure", "not signed by the certificate that follows"),
    "key of another": (_of_another, "server key", "failure", "not the certificate's"),
    "no key": (_no_key, "server key", "failure", "not a private key"),
    "key in a cipher": (_encrypted, "server key", "failure", "encrypted"),
    "key for everybody": (_open_key, "server key", "warning", "mode 0644"),
    "no authority": (_no_authority, "authority of clients", "failure", "no authority's"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faults_of_files(case: str, authority: Authority, tmp_path: Path) -> None:
    """Each fault of a file is found where no server runs yet, said in its own words, with what to do."""
    make, check, verdict, words = FAULTS[case]

    finding = Report(*NOBODY, *make(authority, tmp_path)).findings[check]

    assert finding["verdict"] == verdict
    assert words in finding["detail"]
    assert finding["remedy"]


def test_faults_of_a_handshake(secured: Server, authority: Authority, tmp_path: Path) -> None:
    """A server that is another, has another name, or refuses this caller, is told apart from one that is not there."""
    other, tls = Authority(tmp_path / "other"), authority.tls_as("observer")
    strange = other.tls_as("observer")
    by_number = secured.target.replace("localhost", "127.0.0.1")
    cases = [
        (of_caller(secured.target, Tls(ca=other.ca, cert=tls.cert, key=tls.key)), "issuer certificate", "--ca must"),
        (of_caller(by_number, tls), "mismatch", "127.0.0.1 among its alternative names"),
        (of_caller(secured.target, Tls(ca=authority.ca, cert=strange.cert, key=strange.key)), "refuses", "--cert"),
        (of_caller(secured.target, Tls(ca=authority.ca)), "refuses", "--cert"),
    ]
    for arguments, detail, remedy in cases:
        report = Report(*arguments, "--timeout", "2s")
        assert report.exit_code == 1
        assert detail in report.findings["tls"]["detail"]
        assert remedy in report.findings["tls"]["remedy"]
    nobody = Report(*of_caller(f"localhost:{free_port()}", tls), "--timeout", "2s")
    assert (nobody.failures(), nobody.verdict("tls")) == (["health"], "")


def test_a_name_of_choice(secured: Server, authority: Authority) -> None:
    """With --server-name it is that name which the certificate must have."""
    by_number = secured.target.replace("localhost", "127.0.0.1")

    report = Report(*of_caller(by_number, authority.tls_as("observer")), "--server-name", "localhost")

    assert (report.verdict("tls"), report.verdict("health")) == ("ok", "ok")


def test_a_server_that_has_expired(servers: Servers, authority: Authority) -> None:
    """What nobody can connect to any more is said to have expired."""
    port = free_port()
    server = servers.start(
        *of_server(authority.client(dns("localhost"), days=-1), authority.ca), "--admin-listen", f"localhost:{port}"
    ).wait_until_ready()

    report = Report(*of_caller(f"localhost:{port}", authority.tls_as("observer")), "--timeout", "2s")

    assert "certificate has expired" in report.findings["tls"]["detail"]
    assert server.process.poll() is None


def test_no_tls_there(servers: Servers, authority: Authority) -> None:
    """A server in plain text is not taken for one that is broken."""
    server = servers.start("--insecure-loopback", "", listen=f"localhost:{free_port()}").wait_until_ready()

    report = Report(*of_caller(server.target, authority.tls_as("observer")), "--timeout", "2s")

    assert "no TLS is spoken there" in report.findings["tls"]["detail"]


def test_a_caller_who_is_nobody(secured: Server, authority: Authority) -> None:
    """A certificate that the server takes, and that names no role, is what is wrong then."""
    report = Report(*of_caller(secured.target, authority.tls(uri("spiffe://cluster.test/other/observer"))))

    assert report.failures() == ["caller"]
    assert "--token-file" in report.findings["caller"]["remedy"]


def test_operators_in_the_wrong_place(secured: Server, authority: Authority) -> None:
    """A listener for operators that is not where it should be is missed."""
    elsewhere = ("--admin-listen", f"localhost:{free_port()}", "--timeout", "2s")

    report = Report(*of_caller(secured.target, authority.tls_as("observer")), *elsewhere)

    assert report.failures() == ["admin listener"]


def test_operators_at_a_socket(servers: Servers, authority: Authority, tmp_path: Path) -> None:
    """A Unix socket for operators is found beside TLS for all others."""
    admin = tmp_path / "admin.sock"
    server = servers.start(
        *(*authority.server_flags(), "--admin-listen", f"unix:{admin}"),
        listen=f"localhost:{free_port()}",
        security=Security(tls=authority.tls_as("observer")),
    ).wait_until_ready()
    settings = ("--admin-listen", f"unix:{admin}")

    report = Report(*of_caller(server.target, authority.tls_as("observer")), *settings)

    assert report.verdict("admin listener") == "ok"
