"""Who may call which method, and how its calls are treated: the one table. A method that is not in it is not served."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto

from statepool.errors import RoleForbiddenError
from statepool_server.access.callers import Caller
from statepool_server.access.rules import EVERY_ROLE, Role


class Treatment(Enum):
    """How the calls of a method are treated when the server is full, or drains."""

    ORDINARY = auto()
    """As they come."""
    BEGINNING = auto()
    """They start something new, which a draining server refuses; steps look for themselves."""
    FIRST = auto()
    """They give something back, or keep what is there alive: they find room for as many again as all others."""
    LASTING = auto()
    """They last as long as their client, and are counted by themselves."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Who may call a method, and how its calls are treated."""

    roles: frozenset[Role]
    """Roles of which a caller needs one."""
    spans_tenants: bool = False
    """Whether the method shows or touches what all tenants have, so that who acts for one of them may not call it."""
    elsewhere: frozenset[Role] = frozenset()
    """Roles with which it may be called at the server's other listeners only."""

    treatment: Treatment = Treatment.ORDINARY
    """How its calls are treated."""

    def among(self, roles: frozenset[Role]) -> "Policy":
        """Narrows it to roles that callers may have in some place."""
        return replace(self, roles=self.roles & roles, elsewhere=self.roles - roles)

    def treated(self, treatment: Treatment) -> "Policy":
        """Makes it that of a method whose calls are treated in this way."""
        return replace(self, treatment=treatment)

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


_ALL = Policy(EVERY_ROLE)
_SCHEDULER = Policy(frozenset({Role.SCHEDULER}))
_WORKER = Policy(frozenset({Role.WORKER}), spans_tenants=True)
_STATES = Policy(frozenset({Role.SCHEDULER, Role.WORKER}))
_LOOKING = Policy(frozenset({Role.SCHEDULER, Role.OBSERVER, Role.ADMIN}))
_LOOKING_AT_ALL = Policy(frozenset({Role.SCHEDULER, Role.WORKER, Role.OBSERVER, Role.ADMIN}), spans_tenants=True)
_OPERATOR = Policy(frozenset({Role.OBSERVER, Role.ADMIN}), spans_tenants=True)
_ADMIN = Policy(frozenset({Role.ADMIN}), spans_tenants=True)
BEGINNING, FIRST, LASTING = Treatment.BEGINNING, Treatment.FIRST, Treatment.LASTING

POLICIES: Mapping[str, Mapping[str, Policy]] = {
    "statepool.v1.PoolService": {
        "GetPool": _ALL,
        "CalculateStateShapes": _ALL,
        "ListBlocks": _LOOKING_AT_ALL,
        "WatchBlocks": _LOOKING_AT_ALL.treated(LASTING),
        "AttachPool": _WORKER.treated(BEGINNING),
        "DetachPool": _WORKER.treated(FIRST),
        "ListAttachments": _LOOKING_AT_ALL,
    },
    "statepool.v1.SessionService": {
        "CreateSession": _SCHEDULER.treated(BEGINNING),
        "KeepAlive": _SCHEDULER.treated(LASTING),
        "GetSession": _LOOKING,
        "ListSessions": _LOOKING_AT_ALL,
        "DeleteSession": _SCHEDULER.treated(FIRST),
    },
    "statepool.v1.BlockService": {
        "AllocateBlocks": _SCHEDULER.treated(BEGINNING),
        "FreeBlocks": _SCHEDULER.treated(FIRST),
        "RetainBlocks": _SCHEDULER,
        "CommitBlocks": _SCHEDULER,
        "LookupPrefix": _SCHEDULER.treated(BEGINNING),
        "EvictBlocks": _SCHEDULER,
        "ComputeCopySpecs": _STATES,
        "CopyBlocks": _SCHEDULER,
        "ReadBlocks": _STATES,
        "WriteBlocks": _STATES,
    },
    "statepool.v1.SequenceService": {
        "Step": _SCHEDULER.treated(FIRST),  # it frees what it finishes, and a session has one at a time
        "Schedule": _SCHEDULER.treated(LASTING),
        "ListSequences": _LOOKING,
    },
    "statepool.v1.TransferService": {
        "CreateTransfer": _SCHEDULER,
        "PullBlocks": _STATES,  # for who knows the transfer's token, as all that take it
        "DescribeTransfer": _WORKER,  # who reaches the memory of one tenant over NIXL reaches that of all
        "SumTransfer": _STATES,
        "CompleteTransfer": _STATES.treated(FIRST),
        "CancelTransfer": _STATES.treated(FIRST),
        "ReceiveTransfer": _SCHEDULER.treated(BEGINNING),
        "ListTransfers": _LOOKING_AT_ALL,
    },
    "statepool.v1.AdminService": {
        "GetServerInfo": _ALL.treated(FIRST),
        "GetMetrics": _OPERATOR,
        "VerifyIntegrity": _ADMIN,
        "ReleaseQuarantine": _ADMIN.treated(FIRST),
        "Drain": _ADMIN.treated(FIRST),
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
