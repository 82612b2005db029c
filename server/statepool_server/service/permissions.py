"""Which roles may call which method: the one table. A method that is not in it cannot be served."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from statepool.errors import RoleForbiddenError
from statepool_server.access.callers import Caller
from statepool_server.access.rules import EVERY_ROLE, Role


@dataclass(frozen=True, slots=True)
class Permission:
    """Who may call a method."""

    roles: frozenset[Role]
    """Roles of which a caller needs one."""
    spans_tenants: bool = False
    """Whether the method shows or touches what all tenants have, so that who acts for one of them may not call it."""
    elsewhere: frozenset[Role] = frozenset()
    """Roles with which it may be called at the server's other listeners only."""

    def among(self, roles: frozenset[Role]) -> "Permission":
        """Narrows it to roles that callers may have in some place."""
        return replace(self, roles=self.roles & roles, elsewhere=self.roles - roles)

    def check(self, caller: Caller, method: str) -> None:
        """Refuses a caller who may not call the method.

        Raises:
            RoleForbiddenError: It has none of the roles, or acts for one tenant only.
        """
        if self.roles.isdisjoint(caller.roles):
            raise RoleForbiddenError(f"{method} is for {self._allowed}, and {caller.name} is {_listed(caller.roles)}")
        if self.spans_tenants and caller.tenant:
            raise RoleForbiddenError(f"{method} spans tenants, and {caller.name} acts for {caller.tenant} only")

    @property
    def _allowed(self) -> str:
        here = f"{_listed(self.roles)} here" if self.roles else ""
        flag = "--admin-listen" if Role.ADMIN in self.elsewhere else "--listen"
        there = f"{_listed(self.elsewhere)} at the addresses of {flag}" if self.elsewhere else ""
        return ", ".join(filter(None, (here, there)))


def _listed(roles: frozenset[Role]) -> str:
    return " or ".join(sorted(roles)) or "nobody"


_ALL = Permission(EVERY_ROLE)
_SCHEDULER = Permission(frozenset({Role.SCHEDULER}))
_WORKER = Permission(frozenset({Role.WORKER}), spans_tenants=True)
_STATES = Permission(frozenset({Role.SCHEDULER, Role.WORKER}))
_LOOKING = Permission(frozenset({Role.SCHEDULER, Role.OBSERVER, Role.ADMIN}))
_LOOKING_AT_ALL = Permission(frozenset({Role.SCHEDULER, Role.WORKER, Role.OBSERVER, Role.ADMIN}), spans_tenants=True)
_OPERATOR = Permission(frozenset({Role.OBSERVER, Role.ADMIN}), spans_tenants=True)
_ADMIN = Permission(frozenset({Role.ADMIN}), spans_tenants=True)

PERMISSIONS: Mapping[str, Mapping[str, Permission]] = {
    "statepool.v1.PoolService": {
        "GetPool": _ALL,
        "CalculateStateShapes": _ALL,
        "ListBlocks": _LOOKING_AT_ALL,
        "WatchBlocks": _LOOKING_AT_ALL,
        "AttachPool": _WORKER,
        "DetachPool": _WORKER,
        "ListAttachments": _LOOKING_AT_ALL,
    },
    "statepool.v1.SessionService": {
        "CreateSession": _SCHEDULER,
        "KeepAlive": _SCHEDULER,
        "GetSession": _LOOKING,
        "ListSessions": _LOOKING_AT_ALL,
        "DeleteSession": _SCHEDULER,
    },
    "statepool.v1.BlockService": {
        "AllocateBlocks": _SCHEDULER,
        "FreeBlocks": _SCHEDULER,
        "RetainBlocks": _SCHEDULER,
        "CommitBlocks": _SCHEDULER,
        "LookupPrefix": _SCHEDULER,
        "EvictBlocks": _SCHEDULER,
        "ComputeCopySpecs": _STATES,
        "CopyBlocks": _SCHEDULER,
        "ReadBlocks": _STATES,
        "WriteBlocks": _STATES,
    },
    "statepool.v1.SequenceService": {
        "Step": _SCHEDULER,
        "Schedule": _SCHEDULER,
        "ListSequences": _LOOKING,
    },
    "statepool.v1.TransferService": {
        "CreateTransfer": _SCHEDULER,
        "PullBlocks": _STATES,  # for who knows the transfer's token, as all that take it
        "DescribeTransfer": _WORKER,  # who reaches the memory of one tenant over NIXL reaches that of all
        "SumTransfer": _STATES,
        "CompleteTransfer": _STATES,
        "CancelTransfer": _STATES,
        "ReceiveTransfer": _SCHEDULER,
        "ListTransfers": _LOOKING_AT_ALL,
    },
    "statepool.v1.AdminService": {
        "GetServerInfo": _ALL,
        "GetMetrics": _OPERATOR,
        "VerifyIntegrity": _ADMIN,
        "ReleaseQuarantine": _ADMIN,
        "Drain": _ADMIN,
    },
    "grpc.channelz.v1.Channelz": {
        "GetTopChannels": _OPERATOR,
        "GetServers": _OPERATOR,
        "GetServer": _OPERATOR,
        "GetServerSockets": _OPERATOR,
        "GetChannel": _OPERATOR,
        "GetSubchannel": _OPERATOR,
        "GetSocket": _OPERATOR,
    },
}
"""By full name of the service and name of the method. Health and reflection tell nothing of anybody: all may call."""
