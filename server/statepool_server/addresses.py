"""Where a server may listen."""

import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Address:
    """An address in gRPC's own form, checked."""

    target: str
    """What gRPC binds: ``unix:/path`` or ``host:port``."""
    socket_path: Path | None
    """The socket's path, None for TCP."""

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Reads ``unix:PATH``, ``unix:///PATH`` or ``HOST:PORT``.

        Raises:
            ValueError: No such form, a relative ``unix:///`` path, or a port out of range.
        """
        if text.startswith("unix:"):
            path = Path(text.removeprefix("unix://") if text.startswith("unix://") else text.removeprefix("unix:"))
            if not path.name or (text.startswith("unix://") and not path.is_absolute()):
                raise ValueError(f"listen {text!r}: unix:PATH or unix:///ABSOLUTE/PATH is needed")
            return cls(f"unix:{path}", path)
        host, colon, port = text.rpartition(":")
        if re.search(r"[,\s]", text) or not (
            colon and host and port.isascii() and port.isdecimal() and int(port) < 2**16
        ):
            raise ValueError(f"listen {text!r}: neither unix:PATH nor HOST:PORT")
        return cls(text, None)

    @property
    def place(self) -> Path | tuple[str, int]:
        """What nobody else can listen at: a path, or host and port."""
        if self.socket_path is not None:
            return self.socket_path.absolute()
        host, _, port = self.target.rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def is_local(self) -> bool:
        """Whether nobody but this machine can be there."""
        return self.socket_path is not None or is_loopback(self.target.rpartition(":")[0].strip("[]"))

    def refuse_plaintext(self, insecure_loopback: bool) -> None:
        """Refuses TCP without TLS.

        Args:
            insecure_loopback: Whether the operator has asked for it on loopback hosts; nothing else can be had.

        Raises:
            ValueError: It may not be served in plain text.
        """
        if self.socket_path is not None:
            return
        if not insecure_loopback:
            raise ValueError(
                f"listen {self.target!r}: TCP needs tls-cert and tls-key; without them Unix sockets can be served, and "
                "with insecure-loopback plain text on a loopback host"
            )
        if not self.is_local:
            raise ValueError(
                f"listen {self.target!r}: insecure-loopback is for loopback hosts only (127.0.0.1, [::1], localhost); "
                "others need tls-cert and tls-key"
            )

    def refuse_if_served(self) -> None:
        """Refuses a socket that another server answers on; gRPC would silently take its place.

        Raises:
            ValueError: Somebody listens there, or the path is not a socket.
        """
        if self.socket_path is None or not self.socket_path.exists():
            return
        if not self.socket_path.is_socket():
            raise ValueError(f"listen {self.target}: the path exists and is not a socket")
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(self.socket_path)) == 0:
                raise ValueError(f"listen {self.target}: another server answers there")


def refuse_twice(places: Iterable[tuple[str, Path | tuple[str, int]]]) -> None:
    """Refuses to listen at one place twice: either listener would be told what is meant for the other.

    Args:
        places: Flag and place of each listener; port 0 is another one each time.

    Raises:
        ValueError: Two are the same.
    """
    flags: dict[Path | tuple[str, int], str] = {}
    for flag, place in places:
        if isinstance(place, tuple) and not place[1]:
            continue
        if place in flags:
            shown = "{}:{}".format(*place) if isinstance(place, tuple) else place
            raise ValueError(f"{flags[place]} and {flag} name the same address: {shown}")
        flags[place] = flag


def is_loopback(host: str) -> bool:
    """Tells whether only this machine can be at a host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
