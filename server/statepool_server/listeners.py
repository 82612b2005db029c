"""The gRPC servers of a process: one for each way by which callers come, since each way tells differently who they are.

By a Unix socket, or in plain text on a loopback host: the owner of a token that is shown, else whoever may open it. By
TLS: the owner of a token, else of the certificate. A token is no secret any more where it was sent in plain text, so
there it is not looked at.
"""

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass

import grpc
from grpc_channelz.v1 import channelz, channelz_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from statepool_server.access.callers import Caller, Door, door_by_certificate, door_by_token, door_for_all
from statepool_server.access.rules import EVERY_ROLE, Role
from statepool_server.addresses import Address
from statepool_server.assembly import DESCRIPTORS, Assembly
from statepool_server.config import ServerConfig
from statepool_server.limits import Limits
from statepool_server.planning import Plan
from statepool_server.service.standard_service import HealthService, ReflectionService

MAX_METADATA_BYTES = 8192
"""Of a call; ours have at most a token, and proxies add little."""

MAX_PENDING_REQUESTS = 1_000_000
"""Calls that gRPC may hold before this server has looked at them; connections and their streams bound them already.

Beyond its own limit of 1000, gRPC cancels calls at random, and their callers could not tell that from anything else.
"""

_CHANNELZ = channelz_pb2.DESCRIPTOR.services_by_name["Channelz"]

OPERATORS = frozenset({Role.ADMIN, Role.OBSERVER})
"""Roles that callers may have on a listener for operators."""


@dataclass(frozen=True, slots=True)
class _Way:
    """A way by which callers come."""

    addresses: list[Address]
    door: Door
    roles: frozenset[Role]
    credentials: grpc.ServerCredentials | None = None


class Listeners:
    """Binds every address, and serves on them.

    Attributes:
        targets: The addresses, with the ports that were found where any was asked for.
        admin_targets: The same of those for operators.
    """

    def __init__(self, config: ServerConfig, plan: Plan, assembly: Assembly) -> None:
        """Binds the addresses; nothing is answered before `start`.

        Args:
            config: The configuration.
            plan: What it comes to.
            assembly: What is served.

        Raises:
            ValueError: An address cannot be bound.
        """
        umask = 0o117 if config.socket_access == "group" else 0o177
        others = EVERY_ROLE - {Role.ADMIN} if plan.admin_addresses else EVERY_ROLE
        ways = [(way, umask) for way in _ways(plan, plan.addresses, others)]
        ways += [(way, 0o177) for way in _ways(plan, plan.admin_addresses, OPERATORS)]
        self._servers = []
        bound: dict[Address, str] = {}
        for way, umask in ways:
            server = _new_server(plan.limits, config.max_connections)
            _add_services(server, assembly, way)
            bound |= _bind(server, way, umask)
            self._servers.append(server)
        self.targets = [bound[address] for address in plan.addresses]
        self.admin_targets = [bound[address] for address in plan.admin_addresses]

    async def start(self) -> None:
        """Begins to answer."""
        for server in self._servers:
            await server.start()

    async def stop(self, grace: float) -> None:
        """Ends; calls under way have some seconds to end."""
        await asyncio.gather(*(server.stop(grace) for server in self._servers))


def _ways(plan: Plan, addresses: tuple[Address, ...], roles: frozenset[Role]) -> Iterator[_Way]:
    """Tells how callers come to some addresses, where they may have some roles."""
    anybody = door_for_all(Caller("a local process", plan.local_roles))
    if sockets := [address for address in addresses if address.socket_path is not None]:
        yield _Way(sockets, door_by_token(plan.access, anybody) if plan.access.is_given else anybody, roles)
    if tcp := [address for address in addresses if address.socket_path is None]:
        if plan.certificates is None:
            yield _Way(tcp, anybody, roles)
        else:
            door = door_by_token(plan.access, door_by_certificate(plan.access))
            yield _Way(tcp, door, roles, plan.certificates.credentials())


def _new_server(limits: Limits, max_connections: int) -> grpc.aio.Server:
    return grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", limits.max_message_bytes),
            ("grpc.max_send_message_length", limits.max_message_bytes),
            ("grpc.max_metadata_size", MAX_METADATA_BYTES),
            ("grpc.max_allowed_incoming_connections", max_connections),
            # One client may have all calls and all streams; what is beyond that waits in the client.
            ("grpc.max_concurrent_streams", 2 * limits.max_calls + 2 * limits.max_sessions + limits.max_watchers),
            # What has come but was not looked at yet is not cut off at random: it is refused for what it is.
            ("grpc.server.max_pending_requests", MAX_PENDING_REQUESTS),
            ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING_REQUESTS),
            # A peer that is gone without a word is found out within a minute and a half.
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ("grpc.so_reuseport", 0),  # two servers on one port would each see half of the calls
        ]
    )


def _add_services(server: grpc.aio.Server, assembly: Assembly, way: _Way) -> None:
    """Adds all services; those that tell nothing of anybody, health and reflection, answer to everybody."""
    calls = assembly.calls
    for name, servicer in assembly.servicers.items():
        calls.register(server, DESCRIPTORS[name], servicer, way.door, way.roles)
    calls.register(server, _CHANNELZ, channelz.aio.ChannelzServicer(), way.door, way.roles)
    health_pb2_grpc.add_HealthServicer_to_server(HealthService(assembly.health.servicer, calls.lasting), server)
    services = (*DESCRIPTORS.values(), _CHANNELZ, health_pb2.DESCRIPTOR.services_by_name["Health"])
    names = [*(each.full_name for each in services), reflection.SERVICE_NAME]
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(ReflectionService(names, calls.lasting), server)


def _bind(server: grpc.aio.Server, way: _Way, umask: int) -> dict[Address, str]:
    """Binds the addresses of a way; returns what each has become, since port 0 is any."""
    return {address: _bind_one(server, address, way.credentials, umask) for address in way.addresses}


def _bind_one(server: grpc.aio.Server, address: Address, credentials: grpc.ServerCredentials | None, umask: int) -> str:
    if address.socket_path is not None:
        address.socket_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    former = os.umask(umask)  # whom a socket lets in is decided when it is made
    try:
        if credentials is None:
            port = server.add_insecure_port(address.target)
        else:
            port = server.add_secure_port(address.target, credentials)
    except RuntimeError as error:
        raise ValueError(f"listen {address.target}: cannot be bound: {error}") from error
    finally:
        os.umask(former)
    return address.target if address.socket_path is not None else f"{address.target.rpartition(':')[0]}:{port}"
