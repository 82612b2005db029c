"""Who calls: found out from the way by which a call comes, from a token, or from a certificate."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, TypeAlias

from statepool.errors import PeerUntrustedError
from statepool_server.access.rules import SERVICE, AccessFile, Role

TOKEN_KEY = "authorization"  # noqa: S105 — the name of a header
_SCHEME = "bearer "
_ROLES = frozenset(role.value for role in Role)


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody who calls."""

    name: str
    """For people and logs."""
    roles: frozenset[Role]
    """What it may do."""
    tenant: str = ""
    """The tenant for which it acts; empty: for all."""


NOBODY = Caller("", frozenset())
"""Who calls before that has been found out."""


class Shown(Protocol):
    """What comes with a call, as the context of a call of gRPC shows it."""

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]] | None:
        """Shows what was sent beside the request."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Shows the names of the peer's certificate."""


Door: TypeAlias = Callable[[Shown], Caller]
"""Tells who calls; raises PeerUntrustedError where nobody can say."""


def door_for_all(caller: Caller) -> Door:
    """Makes a door at which everybody who can come there is the same; without a role, nobody is let in."""

    def refuse(_shown: Shown) -> Caller:
        raise PeerUntrustedError(f"{caller.name} must show a token here")

    return (lambda _shown: caller) if caller.roles else refuse


def door_by_token(access: AccessFile, otherwise: Door) -> Door:
    """Makes a door at which a caller shows a token; one who shows none is known otherwise."""

    def caller(shown: Shown) -> Caller:
        token = _token(shown)
        if token is None:
            return otherwise(shown)
        known = access.rules.find(token)
        if known is None:
            raise PeerUntrustedError("the token is not known")
        return Caller(known.name, known.roles, known.tenant)

    return caller


def door_by_certificate(access: AccessFile) -> Door:
    """Makes a door at which callers are who their certificates say; a tenant must be known."""

    def caller(shown: Shown) -> Caller:
        facts = shown.auth_context()
        named = _named(tuple(facts.get("peer_uri", ())), tuple(facts.get("peer_dns", ())))
        if named is None:
            raise PeerUntrustedError("neither a token nor a certificate with one tenant's roles says who calls")
        if named.tenant and named.tenant not in access.rules.tenants:
            raise PeerUntrustedError(f"{named.name}: there is no tenant {named.tenant!r}")
        return named

    return caller


def _token(shown: Shown) -> str | None:
    for key, value in shown.invocation_metadata() or ():
        if key == TOKEN_KEY and isinstance(value, str):
            if value[: len(_SCHEME)].lower() != _SCHEME:
                raise PeerUntrustedError("authorization: only bearer tokens are known")
            return value[len(_SCHEME) :]
    return None


@lru_cache(maxsize=1024)  # a connection's names are the same at each of its calls
def _named(uris: tuple[bytes, ...], dns_names: tuple[bytes, ...]) -> Caller | None:
    """Reads the names of a certificate; None: there is no role among them, or there are several tenants."""
    names = [*map(_of_uri, uris), *map(_of_dns_name, dns_names)]
    found = [(tenant, role, name) for tenant, role, name in names if role in _ROLES]
    if len({tenant for tenant, _, _ in found}) != 1:
        return None
    return Caller(found[0][2], frozenset(Role(role) for _, role, _ in found), found[0][0])


def _of_uri(value: bytes) -> tuple[str, str, str]:
    """Reads ``spiffe://DOMAIN/statepool/[TENANT/]ROLE``: tenant, role, and the name itself."""
    uri = value.decode("utf-8", "replace")
    match uri.split("/"):
        case ["spiffe:", "", domain, service, role] if domain and service == SERVICE:
            return "", role, uri
        case ["spiffe:", "", domain, service, tenant, role] if domain and service == SERVICE and tenant:
            return tenant, role, uri
    return "", "", uri


def _of_dns_name(value: bytes) -> tuple[str, str, str]:
    """Reads ``ROLE.[TENANT.]statepool.DOMAIN``: tenant, role, and the name itself."""
    name = value.decode("utf-8", "replace").lower()
    match name.split("."):
        case [role, service, _, *_] if service == SERVICE:
            return "", role, name
        case [role, tenant, service, _, *_] if service == SERVICE:
            return tenant, role, name
    return "", "", name
