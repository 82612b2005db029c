"""Other servers that states are received from: which ones may be, and connections to them."""

import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

from statepool import AsyncClient
from statepool.descriptions import Pool
from statepool.errors import DeadlineExceededError, PeerLostError, PeerUntrustedError, UnavailableError
from statepool_server.addresses import Address

MAX_IDLE = 16
"""Connections that are kept for the next transfer."""


@dataclass(slots=True)
class Peer:
    """A connection to a server.

    What its pool is made of is asked for once: a server of another pool at the same address knows none of the former's
    transfers.
    """

    client: AsyncClient
    """The connection."""
    pool: Pool | None = None
    """Its pool, if it was asked."""

    async def known_pool(self, seconds: float) -> Pool:
        """Tells what its pool is made of.

        Args:
            seconds: What asking may take.

        Raises:
            PeerLostError: It cannot be reached.
        """
        if self.pool is None:
            try:
                self.pool = await self.client.get_pool(timeout=seconds)
            except (UnavailableError, DeadlineExceededError) as error:
                raise PeerLostError(f"the source cannot be reached: {error.message}", field="source") from error
        return self.pool


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
        self._idle: OrderedDict[str, list[Peer]] = OrderedDict()

    def check(self, target: str) -> str:
        """Checks that a server may be connected to.

        Returns:
            Its address in its plainest form.

        Raises:
            PeerUntrustedError: It may not.
        """
        try:
            address = Address.parse(target)
        except ValueError:
            raise PeerUntrustedError(f"source {target[:256]!r} is no address", field="source") from None
        if self._allowed and address.target not in self._allowed:
            raise PeerUntrustedError(f"source {address.target!r} is not among those that are allowed", field="source")
        if not self._allowed and not address.is_local:
            raise PeerUntrustedError(f"source {address.target!r} is no address of this machine", field="source")
        return address.target

    @contextlib.asynccontextmanager
    async def connected(self, target: str) -> AsyncIterator[Peer]:
        """Gives a connection, which nobody else uses until it is given back; one that has failed is not kept.

        Args:
            target: Its address, checked.
        """
        waiting = self._idle.pop(target, [])
        peer = waiting.pop() if waiting else Peer(AsyncClient(target))
        if waiting:
            self._idle[target] = waiting
        try:
            yield peer
        except BaseException:
            await peer.client.close()
            raise
        self._idle.setdefault(target, []).append(peer)
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
        target, peers = self._idle.popitem(last=False)
        peer = peers.pop()
        if peers:
            self._idle[target] = peers
        await peer.client.close()
