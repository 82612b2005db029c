"""Other servers that states are received from: which ones may be, and connections to them."""

import contextlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

from statepool import AsyncClient
from statepool.descriptions import Pool
from statepool.errors import DeadlineExceededError, PeerLostError, PeerUntrustedError, UnavailableError
from statepool_server.addresses import Address

MAX_IDLE = 16
"""Connections that are kept while no transfer uses them."""


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
    users: int = 0
    """Transfers that use it."""

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
        self._open: dict[str, Peer] = {}  # that which was used last is the last

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
        """Gives the connection to a server, which all transfers from it share.

        Who comes after a failure gets a new one; those who use the former go on with it.

        Args:
            target: Its address, checked.
        """
        peer = self._open.pop(target, None) or Peer(AsyncClient(target))
        self._open[target] = peer
        peer.users += 1
        try:
            yield peer
        except BaseException:
            if self._open.get(target) is peer:
                del self._open[target]
            raise
        finally:
            peer.users -= 1
            if peer.users == 0 and self._open.get(target) is not peer:
                await peer.client.close()
            await self._close_surplus()

    async def close(self) -> None:
        """Closes all connections."""
        while self._open:
            await self._open.popitem()[1].client.close()

    async def _close_surplus(self) -> None:
        idle = [target for target, peer in self._open.items() if not peer.users]
        for target in idle[: max(0, len(idle) - MAX_IDLE)]:
            await self._open.pop(target).client.close()
