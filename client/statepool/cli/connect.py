"""How commands that ask a server connect to it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from cyclopts import Parameter

from statepool import Client
from statepool.channel import DEFAULT_TARGET
from statepool.cli.failure import CommandError
from statepool.errors import DeadlineExceededError, UnavailableError
from statepool.security import Security, Tls, read_token


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Connection:
    """Where a server is, and how a command proves who it is.

    Attributes:
        target: Where the server listens: unix:///path, a loopback host:port, or with --ca any host:port.
        ca: PEM file of the authority of the server's certificate; asks for TLS.
        cert: PEM file of this client's certificate.
        key: PEM file of its key.
        server_name: Name in the server's certificate, where it is not the host of the target.
        token_file: File with a bearer token, for TLS and Unix sockets.
    """

    target: str = DEFAULT_TARGET
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    server_name: str = ""
    token_file: Path | None = None

    @property
    def tls(self) -> Tls | None:
        """TLS as asked for; None: it is not."""
        if self.ca is None and self.cert is None and self.key is None:
            return None
        ca, cert, key = (None if path is None else str(path) for path in (self.ca, self.cert, self.key))
        return Tls(ca=ca, cert=cert, key=key, server_name=self.server_name)

    def at(self, target: str) -> "Connection":
        """Names another address for the same caller; on a Unix socket there is no TLS."""
        if target.startswith("unix:"):
            return Connection(target=target, token_file=self.token_file)
        return replace(self, target=target)

    def security(self) -> Security:
        """Reads all files, and makes sure that nothing is sent in the clear.

        Raises:
            CommandError: Something would be, or a file cannot be read.
        """
        if (self.cert is None) != (self.key is None):
            raise CommandError("--cert and --key are given together or not at all", exit_code=2)
        try:
            asked = Security(tls=self.tls, token=read_token(self.token_file))
            asked.check(self.target, remedy="--ca (TLS)")
            asked.credentials  # noqa: B018 — reads the files
        except OSError as error:
            named = {"--ca": self.ca, "--cert": self.cert, "--key": self.key, "--token-file": self.token_file}
            flag = next((flag for flag, path in named.items() if str(path) == error.filename), "")
            raise CommandError(f"{flag} {error.filename}: {error.strerror}", exit_code=2) from error
        except ValueError as error:
            raise CommandError(str(error), exit_code=2) from error
        return asked


HERE = Connection()
"""The server on this machine, at its default socket."""


@contextmanager
def connect(connection: Connection) -> Iterator[Client]:
    """Opens a client for a command.

    Args:
        connection: Where the server is.

    Yields:
        The client.

    Raises:
        CommandError: No server answers there in time, or something would be sent in the clear.
    """
    security = connection.security()
    with Client(connection.target, tls=security.tls, token=security.token) as client:
        try:
            yield client
        except (UnavailableError, DeadlineExceededError) as error:
            if error.reason:
                raise  # a server does answer, and says why not
            raise CommandError(f"no server answers at {connection.target}: {error}") from error
