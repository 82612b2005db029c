"""Other servers that states are received from: which ones may be, and connections to them."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from statepool import AsyncClient, Tls
from statepool.descriptions import Pool
from statepool.errors import DeadlineExceededError, PeerLostError, PeerUntrustedError, UnavailableError
from statepool.security import read_token
from statepool_server.addresses import Address

MAX_IDLE = 16
"""Connections that are kept while no transfer uses them."""


@dataclass(frozen=True, slots=True)
class PeerTerms:
    """Which servers states may be received from, and how this one proves to them who it is."""

    allowed: tuple[Address, ...] = ()
    """Their addresses; none: all of this machine."""
    tls: Tls | None = None
    """For TCP; None: it is in plain text, and on loopback hosts only."""
    token_file: Path | None = None
    """File with a bearer token, shown over TLS only: a Unix socket may be anybody's."""

    def client(self, address: Address) -> AsyncClient:
        """Makes a client of a server; the files are read now, so that a new connection goes by what they say now.

        Raises:
            PeerLostError: One of them cannot be used.
        """
        if address.socket_path is not None or self.tls is None:
            return AsyncClient(address.target)
        try:
            return AsyncClient(address.target, tls=self.tls, token=read_token(self.token_file))
        except (OSError, ValueError) as error:
            raise PeerLostError(f"the source cannot be reached: {error}", field="source") from error

    def check(self) -> None:
        """Makes sure that what is listed can be reached as it must be.

        Raises:
            OSError: A file cannot be read.
            ValueError: A file says nothing usable, or something would be sent in the clear.
        """
        if self.tls is not None:
            self.tls.credentials()
            read_token(self.token_file)
            return
        if self.token_file is not None:
            raise ValueError("peer-token-file: a token is shown over TLS only, which needs tls-cert or peer-ca")
        for address in self.allowed:
            if not address.is_local:
                raise ValueError(f"allow-peer {address.target!r}: beyond this machine it needs tls-cert or peer-ca")


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

    def __init__(self, terms: PeerTerms) -> None:
        """Begins without a connection.

        Args:
            terms: Who may be connected to, and how.
        """
        self._terms = terms
        self._open: dict[Address, Peer] = {}  # that which was used last is the last

    def check(self, target: str, tenant: str) -> Address:
        """Checks that a server may be connected to.

        Args:
            target: Its address, as a client names it.
            tenant: For whom; empty: for nobody in particular. A tenant has this server connect to what is listed only.

        Returns:
            Its address in its plainest form.

        Raises:
            PeerUntrustedError: It may not.
        """
        try:
            address = Address.parse(target)
        except ValueError:
            raise PeerUntrustedError(f"source {target[:256]!r} is no address", field="source") from None
        if (self._terms.allowed or tenant) and address not in self._terms.allowed:
            raise PeerUntrustedError(f"source {address.target!r} is not among those that are allowed", field="source")
        if not (self._terms.allowed or address.is_local):
            raise PeerUntrustedError(f"source {address.target!r} is no address of this machine", field="source")
        return address

    @contextlib.asynccontextmanager
    async def connected(self, address: Address) -> AsyncIterator[Peer]:
        """Gives the connection to a server, which all transfers from it share.

        Who comes after a failure gets a new one; those who use the former go on with it.

        Args:
            address: Where to, checked.

        Raises:
            PeerLostError: What this server proves itself with cannot be read.
        """
        peer = self._open.pop(address, None) or Peer(self._terms.client(address))
        self._open[address] = peer
        peer.users += 1
        try:
            yield peer
        except BaseException:
            if self._open.get(address) is peer:
                del self._open[address]
            raise
        finally:
            peer.users -= 1
            if peer.users == 0 and self._open.get(address) is not peer:
                await peer.client.close()
            await self._close_surplus()

    async def close(self) -> None:
        """Closes all connections."""
        while self._open:
            await self._open.popitem()[1].client.close()

    async def _close_surplus(self) -> None:
        idle = [address for address, peer in self._open.items() if not peer.users]
        surplus = [self._open.pop(address) for address in idle[: max(0, len(idle) - MAX_IDLE)]]
        for peer in surplus:  # while one is closed, the others may not be given to anybody
            await peer.client.close()
