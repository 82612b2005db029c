"""Files that settings name; what is wrong with one is said with the setting and the path."""

import re
from pathlib import Path

_CERTIFICATE = re.compile(rb"-----BEGIN ([A-Z0-9]+ )?CERTIFICATE-----")
_KEY = re.compile(rb"-----BEGIN ([A-Z0-9]+ )?PRIVATE KEY-----")


def cause(error: Exception) -> str:
    """Says why a file cannot be used, without its name."""
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def read_file(flag: str, path: Path) -> bytes:
    """Reads a file.

    Args:
        flag: The setting that names it.
        path: The file.

    Raises:
        ValueError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{flag} {path}: {cause(error)}") from error


def read_certificates(flag: str, path: Path) -> bytes:
    """Reads a PEM file of certificates; raises ValueError where it cannot be read or has none."""
    return _pem(flag, path, _CERTIFICATE, "certificate")


def read_key(flag: str, path: Path) -> bytes:
    """Reads a PEM file of a private key; raises ValueError where it cannot be read or has none."""
    return _pem(flag, path, _KEY, "private key")


def _pem(flag: str, path: Path, begin: re.Pattern[bytes], what: str) -> bytes:
    content = read_file(flag, path)
    if begin.search(content) is None:
        raise ValueError(f"{flag} {path}: holds no {what} in PEM")
    return content
