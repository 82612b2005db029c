"""Keeps tenants apart: whoever acts for one of them names its sessions, its namespaces and its blocks only."""

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, TypeAlias

from google.protobuf.message import Message

from statepool.errors import RoleForbiddenError
from statepool.refs import BlockRefs
from statepool.v1 import session_pb2, types_pb2
from statepool.wire import refs_from_wire
from statepool_server.access.callers import Caller
from statepool_server.access.rules import AccessFile, Tenant
from statepool_server.pool import Pool
from statepool_server.service.quotas import Quotas

_Named: TypeAlias = "tuple[str, int | str | types_pb2.BlockRefs]"
"""A field's name, and what it names: a session by its id, a namespace, or blocks."""


class Tenancy:
    """Looks through the requests of callers who act for one tenant."""

    def __init__(self, access: AccessFile, pool: Pool, quotas: Quotas) -> None:
        """Begins.

        Args:
            access: Tells what is whose.
            pool: Knows the sessions and the blocks.
            quotas: Tells how many messages of a stream may come.
        """
        self._access = access
        self._pool = pool
        self._quotas = quotas

    def check(self, caller: Caller, request: Message) -> None:
        """Refuses a request that names what is another tenant's; one for a session is put on the caller's account.

        Nothing may be awaited between this and the act that the request asks for.

        Raises:
            RoleForbiddenError: It does.
        """
        if isinstance(request, session_pb2.CreateSessionRequest):
            _put_on_account(caller, request)
        session_id = 0
        for field, named in _named_in(request):
            if isinstance(named, int):
                session_id = named
                self._check_session(caller, named, field)
            elif isinstance(named, str):
                self._check_namespace(caller, named, field)
            else:
                self._check_blocks(caller, session_id, named, field)

    async def checked(self, caller: Caller, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """Passes the requests of a stream on, each checked, and none sooner than the tenant's rate allows."""
        async for request in requests:
            await self._quotas.message(caller.tenant)
            if isinstance(request, Message):  # what is no message is refused by whoever looks into it
                self.check(caller, request)
            yield request

    def _check_session(self, caller: Caller, session_id: int, field: str) -> None:
        session = self._pool.sessions.find(session_id)
        if session is not None and session.tenant != caller.tenant:
            raise RoleForbiddenError(f"{field}: session {session_id} is not of tenant {caller.tenant}", field=field)

    def _check_namespace(self, caller: Caller, namespace: str, field: str) -> None:
        if not self._tenant(caller).owns(namespace, caller.tenant):
            raise RoleForbiddenError(f"{field}: namespace {namespace!r} is not of tenant {caller.tenant}", field=field)

    def _check_blocks(self, caller: Caller, session_id: int, blocks: types_pb2.BlockRefs, field: str) -> None:
        """Refuses committed blocks that stand in a namespace of others, unless the session has been given them."""
        if len(blocks.block_ids) != len(blocks.generations):
            return  # the request is refused for that
        refs: BlockRefs = refs_from_wire(blocks)
        tenant = self._tenant(caller)
        for block_id in self._pool.committed_by_others(session_id, refs).tolist():
            name = self._pool.prefixes.name_of(block_id)  # None: it can be found no more
            if name is None or not tenant.owns(name[0], caller.tenant):
                raise RoleForbiddenError(f"{field}: block {block_id} is not of tenant {caller.tenant}", field=field)

    def _tenant(self, caller: Caller) -> Tenant:
        tenant = self._access.rules.tenants.get(caller.tenant)
        if tenant is None:
            raise RoleForbiddenError(f"there is no tenant {caller.tenant!r} any more")
        return tenant


def _put_on_account(caller: Caller, request: session_pb2.CreateSessionRequest) -> None:
    if request.tenant not in ("", caller.tenant):
        raise RoleForbiddenError(f"tenant: {caller.name} acts for {caller.tenant} only", field="tenant")
    request.tenant = caller.tenant


def _named_in(message: Message, path: str = "") -> Iterator[_Named]:
    """Finds the sessions, namespaces and blocks that a message names, wherever they stand in it, in this order."""
    parts: list[tuple[str, Any]] = []
    for field in message.DESCRIPTOR.fields:
        name, value = f"{path}{field.name}", getattr(message, field.name)
        if field.message_type is None:
            yield from ((name, named) for named in _names(message, field.name, value))
        elif not field.has_presence:
            parts += [(name, part) for part in value]
        elif message.HasField(field.name):
            parts.append((name, value))
    for name, part in parts:
        if isinstance(part, types_pb2.BlockRefs):
            yield name, part
        else:
            yield from _named_in(part, f"{name}.")


def _names(message: Any, field: str, value: Any) -> Sequence[int | str]:
    """Lists what a plain field names; where hashes stand, or will stand, no name means the empty namespace."""
    match field:
        case "session_id":
            return (value,)
        case "namespace":
            return (value,) if message.prefix_hashes else ()
        case "namespaces":
            return value or ("",) if message.sequence_ids else ()
    return ()
