"""The HTTP listener of a process: what it shows, and to whom.

On loopback, or where the operator has asked for it, it is plain HTTP for whoever can connect; it shows numbers, and no
states, hashes, keys or tokens. Elsewhere it is HTTPS, for those who may ask for the same numbers over gRPC.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus

from statepool.errors import PeerUntrustedError, RoleForbiddenError
from statepool_server.access.callers import TOKEN_KEY, door_by_certificate, door_by_token
from statepool_server.access.rules import AccessFile
from statepool_server.assembly import Assembly
from statepool_server.page.assets import asset_routes
from statepool_server.planning import Plan
from statepool_server.service.policies import POLICIES
from statepool_server.web import Guard, Page, Visitor, WebServer, open_to_all

_NUMBERS = POLICIES["statepool.v1.AdminService"]["GetMetrics"]


async def web_listener(plan: Plan, assembly: Assembly) -> WebServer:
    """Makes the listener, and has it listen where that is planned.

    Raises:
        ValueError: The address cannot be bound.
    """
    routes = {
        "/metrics": lambda accept: Page(*assembly.metrics.text(accept)),
        "/status.json": assembly.status.page,
    } | asset_routes()
    tls = None if plan.metrics_in_clear or plan.certificates is None else plan.certificates.context()
    web = WebServer(routes, open_to_all if tls is None else _guard(plan.access))
    if plan.metrics_address is not None:
        await web.listen(*plan.metrics_address, tls)
    return web


def _guard(access: AccessFile) -> Guard:
    """Lets in who may have the metrics, by the same tokens and certificates as everywhere."""
    door = door_by_token(access, door_by_certificate(access))

    def status(visitor: Visitor) -> HTTPStatus:
        try:
            _NUMBERS.check(door(_Shown(visitor)), "the HTTP listener")
        except PeerUntrustedError:
            return HTTPStatus.UNAUTHORIZED
        except RoleForbiddenError:
            return HTTPStatus.FORBIDDEN
        return HTTPStatus.OK

    return status


@dataclass(frozen=True, slots=True)
class _Shown:
    """What a visitor shows, as a call of gRPC would."""

    visitor: Visitor

    def invocation_metadata(self) -> Iterable[tuple[str, str]]:
        header = self.visitor.authorization
        return () if header is None else ((TOKEN_KEY, header),)

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        return {"peer_uri": self._names("URI"), "peer_dns": self._names("DNS")}

    def _names(self, kind: str) -> list[bytes]:
        return [name.encode() for of_kind, name in self.visitor.names if of_kind == kind]
