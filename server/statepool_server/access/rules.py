"""The access file: tenants, what they may have, and the tokens by which callers are known."""

import hashlib
import hmac
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec

from statepool_server.access.watched import Watched
from statepool_server.files import read_file

SERVICE = "statepool"
"""Part of a name in a certificate beside which stand tenant and role; no tenant's name."""


class Role(StrEnum):
    """What a caller is there for; one caller may have several roles."""

    WORKER = "worker"
    """Attaches, and reads and writes states."""
    SCHEDULER = "scheduler"
    """Owns sessions, blocks and sequences."""
    OBSERVER = "observer"
    """Looks at everything and changes nothing."""
    ADMIN = "admin"
    """Drains, verifies and releases."""


EVERY_ROLE = frozenset(Role)
"""All roles."""


def roles_of(text: str) -> frozenset[Role]:
    """Reads ``worker,scheduler`` or ``none``.

    Raises:
        ValueError: One of them is no role.
    """
    names = [name.strip() for name in text.split(",")] if text != "none" else []
    known = [role.value for role in Role]
    for name in names:
        if name not in known:
            raise ValueError(f"{name!r} is no role: {', '.join(known)}, or none")
    return frozenset(map(Role, names))


_Name = Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z")]
_Hash = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
_Count = Annotated[int, msgspec.Meta(ge=1)]
_Rate = Annotated[float, msgspec.Meta(gt=0)]


class Tenant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """What the sessions of one tenant may have together; None: as much as the server gives anybody."""

    namespaces: tuple[str, ...] | None = None
    """Its namespaces, ``*`` at the end standing for all that begin so; None: its name, and all below (``NAME/*``)."""
    max_blocks: _Count | None = None
    """Blocks that its sessions hold, each counted once a session, and those that it lends beside."""
    max_sessions: _Count | None = None
    """Live sessions."""
    max_transfers: _Count | None = None
    """Open transfers: states that are lent."""
    max_calls: _Count | None = None
    """Calls under way, streams included."""
    max_rate: _Rate | None = None
    """Calls a second, messages of streams included; those of one second may come at once."""

    def owns(self, namespace: str, name: str) -> bool:
        """Tells whether a namespace is the tenant's, which is called by a name."""
        patterns = (name, f"{name}/*") if self.namespaces is None else self.namespaces
        return any(
            namespace.startswith(pattern[:-1]) if pattern.endswith("*") else namespace == pattern
            for pattern in patterns
        )


class Token(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A token by which a caller is known."""

    name: str
    """The caller's, for people and logs."""
    roles: frozenset[Role]
    """What it may do."""
    sha256: _Hash
    """SHA-256 of the token, in lower-case hex: whoever reads the file cannot call by it."""
    tenant: str = ""
    """The tenant for which it acts; empty: for all."""


class Rules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an access file says."""

    tenants: Mapping[_Name, Tenant] = {}
    """Tenants by name."""
    tokens: tuple[Token, ...] = ()
    """Tokens."""

    @classmethod
    def read(cls, path: Path) -> "Rules":
        """Reads a TOML file.

        Raises:
            ValueError: It cannot be read, or says something that cannot be.
        """
        content = read_file("--access", path)
        try:
            rules = msgspec.toml.decode(content, type=cls)
        except (msgspec.MsgspecError, ValueError) as error:
            known = f"; roles are {', '.join(Role)}" if "enum value" in str(error) else ""
            raise ValueError(f"--access {path}: {error}{known}") from error
        if SERVICE in rules.tenants:
            raise ValueError(f"--access {path}: no tenant can be called {SERVICE!r}")
        for token in rules.tokens:
            if token.tenant and token.tenant not in rules.tenants:
                raise ValueError(f"--access {path}: token {token.name!r}: there is no tenant {token.tenant!r}")
        return rules

    def find(self, token: str) -> Token | None:
        """Finds what is known of a token; how long that takes says nothing about the tokens that are known."""
        digest, found = hashlib.sha256(token.encode()).hexdigest(), None
        for known in self.tokens:
            if hmac.compare_digest(known.sha256, digest):
                found = known
        return found


class AccessFile:
    """An access file, read anew when it changes; without one there are neither tenants nor tokens."""

    def __init__(self, path: Path | None) -> None:
        """Reads it.

        Raises:
            ValueError: As `Rules.read`.
        """
        self._rules = Rules()
        self._file = None if path is None else Watched([path], lambda: Rules.read(path))

    @property
    def is_given(self) -> bool:
        """Whether there is such a file."""
        return self._file is not None

    @property
    def rules(self) -> Rules:
        """What it says now."""
        if self._file is None:
            return self._rules
        self._file.refresh()
        return self._file.current
