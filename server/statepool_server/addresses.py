"""Where a server may listen."""

import ipaddress
import socket
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
            ValueError: No such form, a relative ``unix:///`` path, a port out of range, or a host that is not loopback:
                without TLS nothing but this machine may connect.
        """
        if text.startswith("unix:"):
            path = Path(text.removeprefix("unix://") if text.startswith("unix://") else text.removeprefix("unix:"))
            if not path.name or (text.startswith("unix://") and not path.is_absolute()):
                raise ValueError(f"listen {text!r}: unix:PATH or unix:///ABSOLUTE/PATH is needed")
            return cls(f"unix:{path}", path)
        host, colon, port = text.rpartition(":")
        if not (colon and host and port.isascii() and port.isdecimal() and int(port) < 2**16):
            raise ValueError(f"listen {text!r}: neither unix:PATH nor HOST:PORT")
        if not _is_loopback(host.strip("[]")):
            raise ValueError(
                f"listen {text!r}: only loopback hosts (127.0.0.1, [::1], localhost) and unix sockets can be served "
                "without TLS, which this version does not have; put a TLS proxy before it or use a unix socket"
            )
        return cls(text, None)

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


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
