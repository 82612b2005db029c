"""How a client proves who it is, and makes sure whom it talks to; shared by the sync and the async client."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc

if TYPE_CHECKING:
    from statepool.rpc import Metadata

_File: TypeAlias = "str | os.PathLike[str] | None"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Files for TLS, in PEM. They are read when a client is made: for others, make another."""

    ca: _File = None
    """Authorities of servers; None: those that gRPC comes with."""
    cert: _File = None
    """This client's certificate, followed by those of intermediate authorities; None: it shows none."""
    key: _File = None
    """The key of that certificate."""
    server_name: str = ""
    """Name that the server's certificate must have; empty: the host of the target."""

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads the files.

        Raises:
            OSError: One of them cannot be read.
            ValueError: There is a certificate without a key, or a key without a certificate.
        """
        if (self.cert is None) != (self.key is None):
            raise ValueError("tls: cert and key are given together or not at all")
        return grpc.ssl_channel_credentials(_read(self.ca), _read(self.key), _read(self.cert))


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """Security settings of a client; printing them shows no secret."""

    tls: Tls | grpc.ChannelCredentials | None = None
    """TLS, or credentials of the caller's own making; None: plain text."""
    token: str | None = field(default=None, repr=False)
    """Bearer token by which the server knows the caller; None: there is none."""
    insecure: bool = False
    """Whether plain text may leave this machine."""

    def check(self, target: str, *, remedy: str = "tls=… or insecure=True (plain text)") -> None:
        """Refuses to send states, or a token, in the clear by accident.

        Args:
            target: Where to connect, in gRPC's naming.
            remedy: What the caller's user can give for another machine.

        Raises:
            ValueError: The target is a bare path or a URL; or, without TLS, it is neither a Unix socket nor a loopback
                address, and nobody has said ``insecure=True``; or there is a token, and it is not a Unix socket; or
                there are both TLS and insecure; or the token is not printable ASCII.
        """
        _refuse_form(target)
        if self.token is not None and not _is_token(self.token):
            raise ValueError("token: must be printable ASCII, in one line")
        if self.tls is not None:
            if self.insecure:
                raise ValueError("tls and insecure=True contradict each other")
            return
        if not (self.insecure or _is_local(target)):
            raise ValueError(f"{target}: not on this machine, so it needs {remedy}")
        if self.token is not None and not _is_unix(target):
            raise ValueError(f"{target}: a token is sent over TLS or a Unix socket only")

    @property
    def credentials(self) -> grpc.ChannelCredentials | None:
        """Credentials of a channel; None: it is in plain text. Raises as `Tls.credentials`."""
        return self.tls.credentials() if isinstance(self.tls, Tls) else self.tls

    @property
    def options(self) -> list[tuple[str, Any]]:
        """Channel arguments."""
        name = self.tls.server_name if isinstance(self.tls, Tls) else ""
        return [("grpc.ssl_target_name_override", name)] if name else []

    @property
    def metadata(self) -> Metadata:
        """What goes with every call."""
        return () if self.token is None else (("authorization", f"Bearer {self.token}"),)


PLAIN = Security()
"""Neither TLS nor a token: for Unix sockets."""


def read_token(path: _File) -> str | None:
    """Reads a token out of a file, if one is named; white space around it is not part of it.

    Raises:
        OSError: It cannot be read.
        ValueError: It holds no token.
    """
    if not path:
        return None
    token = Path(path).read_text(encoding="ascii", errors="replace").strip()
    if not _is_token(token):
        raise ValueError(f"{path}: holds no token, which is printable ASCII in one line")
    return token


def _is_token(text: str) -> bool:
    return text != "" and text.isascii() and text.isprintable()


def _read(path: _File) -> bytes | None:
    return None if path is None else Path(path).read_bytes()


def _refuse_form(target: str) -> None:
    """Refuses what gRPC would take for the name of a host."""
    if target.startswith(("/", "./", "../", "~")):
        raise ValueError(f"{target}: the path of a socket needs unix: before it")
    scheme, separator, _ = target.partition("://")
    if separator and scheme.lower() in ("http", "https", "grpc", "grpcs", "tcp"):
        raise ValueError(f"{target}: a target is unix:PATH or HOST:PORT, without {scheme}://")


def _is_unix(target: str) -> bool:
    return target.partition(":")[0] in ("unix", "unix-abstract") and ":" in target


def _is_local(target: str) -> bool:
    if _is_unix(target):
        return True
    scheme, _, rest = target.partition(":")
    addresses = rest.rsplit("/", 1)[-1] if scheme in ("dns", "ipv4", "ipv6") else target
    return all(_is_loopback(_host(address)) for address in addresses.split(","))


def _host(address: str) -> str:
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address.rpartition(":")[0] if address.count(":") == 1 else address


def _is_loopback(host: str) -> bool:
    import ipaddress  # a millisecond that a Unix socket never needs

    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
