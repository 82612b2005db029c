"""Checks of certificates and keys in PEM files, and of certificates that a server shows."""

import stat
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509 import SubjectAlternativeName

from statepool.doctor.findings import Finding, bad, doubtful, good

SOON = timedelta(days=14)
"""Time left of which is warned, or a third of the certificate's if that is less: programs renew short ones then."""

_RENEW = "put a new one in its place, by renaming; the server reads it anew, without a restart"
_LET_READ = "give it to the user of this process (chown, fsGroup), or run this where the server runs"


def check_pair(owner: str, cert: Path, key: Path) -> Iterator[Finding]:
    """Checks a certificate with its chain, and its key.

    Args:
        owner: Whose it is: "server" or "client".
        cert: The certificate, followed by those of intermediate authorities.
        key: Its key.
    """
    chain = read_certificates(f"{owner} certificate", cert)
    yield chain if isinstance(chain, Finding) else _judge_chain(f"{owner} certificate", cert, chain)
    yield _judge_key(f"{owner} key", key, None if isinstance(chain, Finding) else chain[0])


def check_authorities(check: str, path: Path) -> Iterator[Finding]:
    """Checks the certificates of those whose word is taken."""
    found = read_certificates(check, path)
    if isinstance(found, Finding):
        yield found
    elif strange := [each for each in found if not _is_authority(each)]:
        subject = strange[0].subject.rfc4514_string()
        yield bad(check, f"{path}: {subject} is no authority's", "put the certificates of authorities there")
    else:
        yield judge_time(check, str(path), min(found, key=lambda each: each.not_valid_after_utc))


def judge_time(check: str, what: str, certificate: x509.Certificate) -> Finding:
    """Judges how long a certificate is good.

    Args:
        check: Name of the check.
        what: What it is, for the detail.
        certificate: The certificate.
    """
    now, begins, ends = datetime.now(UTC), certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < begins:
        return bad(
            check, f"{what}: good from {begins:%Y-%m-%d %H:%M} UTC on only", "compare the clocks of the machines"
        )
    if now >= ends:
        return bad(check, f"{what}: expired on {ends:%Y-%m-%d %H:%M} UTC", _RENEW)
    detail = f"{what}: good until {ends:%Y-%m-%d %H:%M} UTC ({(ends - now).days} days)"
    if ends - now < min(SOON, (ends - begins) / 3):
        return doubtful(check, detail, _RENEW)
    return good(check, detail)


def names_of(certificate: x509.Certificate) -> list[str]:
    """Lists the names that a certificate is for; its subject counts for nobody any more."""
    try:
        names = certificate.extensions.get_extension_for_class(SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [str(name.value) for name in names]


def read_certificates(check: str, path: Path) -> Sequence[x509.Certificate] | Finding:
    """Reads a file; what is wrong with it is a finding."""
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        return bad(check, f"{path}: {error.strerror}", _LET_READ)
    except ValueError:
        return bad(check, f"{path}: not a certificate in PEM", "-----BEGIN CERTIFICATE----- begins one; mount the file")


def _judge_chain(check: str, path: Path, chain: Sequence[x509.Certificate]) -> Finding:
    for signed, authority in pairwise(chain):
        try:
            signed.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature):
            subject = signed.subject.rfc4514_string()
            return bad(
                check,
                f"{path}: {subject} is not signed by the certificate that follows it",
                "put its own certificate first, then that of its authority, then that one's",
            )
    names = names_of(chain[0])
    if not names:
        return bad(check, f"{path}: names nobody", "have it signed with subject alternative names: hosts, roles")
    return judge_time(check, f"{path}: {', '.join(names)}", chain[0])


def _judge_key(check: str, path: Path, certificate: x509.Certificate | None) -> Finding:
    try:
        mode = path.stat().st_mode
        key = load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        return bad(check, f"{path}: {error.strerror}", _LET_READ)
    except TypeError:
        return bad(check, f"{path}: encrypted, which nobody could decrypt at a restart", "openssl pkey -in … -out …")
    except ValueError:
        return bad(check, f"{path}: not a private key in PEM", "-----BEGIN PRIVATE KEY----- begins one; mount the file")
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if certificate and certificate.public_key().public_bytes(*form) != key.public_key().public_bytes(*form):
        return bad(check, f"{path}: not the certificate's", "replace certificate and key together")
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        return doubtful(
            check,
            f"{path}: mode {stat.S_IMODE(mode):04o}, open to every user of the machine",
            "chmod 600, or defaultMode: 0400 where a secret is mounted; then replace it, somebody may have read it",
        )
    return good(check, f"{path}: mode {stat.S_IMODE(mode):04o}")


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return certificate.issuer == certificate.subject  # of the first version, which has no extensions
