"""What can be found out about a deployment from where the doctor stands."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from statepool import Client, Pool, ServerInfo
from statepool.doctor.listener import Listener
from statepool.errors import StatepoolError
from statepool.machine import default_state_dir
from statepool.mounts import Folder
from statepool.security import PLAIN, Security, Tls


@dataclass(frozen=True, slots=True)
class Wanted:
    """Settings of a server, needed as far as it does not run and tell of them itself."""

    memory: int | None = None
    """Bytes of each rank's arena."""
    ranks: int = 1
    """Ranks that it holds."""
    device: str = "cpu"
    """``cpu`` or ``cuda:N[,M…]``."""
    state_dir: Path | None = None
    """Folder of host arenas; None: the server's default."""
    tls_cert: Path | None = None
    """Its certificate."""
    tls_key: Path | None = None
    """Its key."""
    tls_client_ca: Path | None = None
    """Authorities of its callers."""


class Deployment:
    """A server, running or not, and its surroundings; every fact is asked for once.

    Attributes:
        target: Where the server should listen.
        health: What its health service says, or the status code of the failed call.
        wanted: Its settings, as far as they are known without it.
        timeout: Seconds that an answer may take.
        admin_health: As `health`, by each address where operators should find it.
    """

    def __init__(
        self,
        target: str,
        health: str,
        wanted: Wanted,
        timeout: float,
        security: Security = PLAIN,
        admin_health: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.target = target
        self.health = health
        self.wanted = wanted
        self.timeout = timeout
        self.admin_health = admin_health
        self._security = security

    @property
    def tls(self) -> Tls | None:
        """How this caller does TLS; None: it does not."""
        return self._security.tls if isinstance(self._security.tls, Tls) else None

    @cached_property
    def socket_path(self) -> Path | None:
        """Path of the server's Unix socket; None: it listens elsewhere."""
        if not self.target.startswith("unix:"):
            return None
        return Path(self.target.removeprefix("unix:").replace("///", "/", 1))

    @cached_property
    def listener(self) -> Listener | None:
        """The server's process; None: nobody listens, or not on a Unix socket that this process may use."""
        with suppress(OSError):
            return None if self.socket_path is None else Listener.at(self.socket_path)
        return None

    @cached_property
    def _told(self) -> tuple[ServerInfo, Pool] | StatepoolError:
        security = self._security
        with Client(self.target, timeout=self.timeout, tls=security.tls, token=security.token) as client:
            try:
                return client.get_server_info(), client.get_pool()
            except StatepoolError as error:
                return error

    @property
    def answers(self) -> tuple[ServerInfo, Pool] | None:
        """What the server tells about itself; None: it does not answer."""
        return None if isinstance(self._told, StatepoolError) else self._told

    @property
    def refusal(self) -> StatepoolError | None:
        """Why the server tells nothing."""
        return self._told if isinstance(self._told, StatepoolError) else None

    @property
    def pool(self) -> Pool | None:
        """The server's pool; None: it does not answer."""
        return self.answers[1] if self.answers else None

    @property
    def process(self) -> str:
        """Name in /proc of the process whose limits and mounts count: the server's if it is visible, else this one."""
        return str(self.listener.pid) if self.listener and self.listener.pid else "self"

    @property
    def host_bytes(self) -> int | None:
        """Bytes of all arenas in host memory; None: neither told by a server nor given."""
        if self.pool is not None:
            return self.pool.layout.nbytes * self.pool.devices.count("cpu")
        if self.wanted.device != "cpu":
            return 0
        return None if self.wanted.memory is None else self.wanted.memory * self.wanted.ranks

    @cached_property
    def arenas(self) -> Folder | None:
        """Where host arenas lie, or would; None: a running server may not be asked."""
        if self.pool is not None:
            return self.listener.arenas if self.listener else None
        return Folder.here(self.wanted.state_dir or default_state_dir())
