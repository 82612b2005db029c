"""Other servers that states are received from: which ones may be, and connections to them."""

import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable

from statepool import AsyncClient
from statepool.errors import PeerUntrustedError
from statepool_server.addresses import Address

MAX_IDLE = 16
"""Connections that are kept for the next transfer."""


class Peers:
    """Connections by address, kept open for a while.

    A client names the address, so that without bounds it could have this server connect to whatever it can reach: only
    what is on this machine, or what the operator has listed of it, is connected to.
    """

    def __init__(self, allowed: Iterable[Address]) -> None:
        """Begins without a connection.

        Args:
            allowed: Addresses; none: all of this machine.
        """
        self._allowed = {address.target for address in allowed}
        self._idle: OrderedDict[str, list[AsyncClient]] = OrderedDict()

    def check(self, target: str) -> str:
        """Checks that a server may be connected to.

        Returns:
            Its address in its plainest form.

        Raises:
            PeerUntrustedError: It may not.
        """
        try:
            plain = Address.parse(target).target
        except ValueError:
            raise PeerUntrustedError(f"source {target[:256]!r} is no address of this machine", field="source") from None
        if self._allowed and plain not in self._allowed:
            raise PeerUntrustedError(f"source {plain!r} is not among those that are allowed", field="source")
        return plain

    @contextlib.asynccontextmanager
    async def connected(self, target: str) -> AsyncIterator[AsyncClient]:
        """Gives a client of a server, which nobody else uses until it is given back.

        Args:
            target: Its address, checked.
        """
        waiting = self._idle.pop(target, [])
        client = waiting.pop() if waiting else AsyncClient(target)
        if waiting:
            self._idle[target] = waiting
        try:
            yield client
        finally:
            self._idle.setdefault(target, []).append(client)
            self._idle.move_to_end(target)
            await self._close_surplus()

    async def close(self) -> None:
        """Closes all connections that nobody uses."""
        while self._idle:
            await self._close_oldest()

    async def _close_surplus(self) -> None:
        while sum(map(len, self._idle.values())) > MAX_IDLE:
            await self._close_oldest()

    async def _close_oldest(self) -> None:
        target, clients = self._idle.popitem(last=False)
        client = clients.pop()
        if clients:
            self._idle[target] = clients
        await client.close()
