"""Guarantee: a connection to another server is open for as long as a transfer uses it, whoever else comes and goes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from statepool import AsyncClient
from statepool_server.addresses import Address
from statepool_server.service import peers as module
from statepool_server.service.peers import Peers, PeerTerms

ADDRESSES = [Address.parse(f"unix:/nowhere/{number}") for number in range(5)]


@pytest.fixture
async def peers(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Peers]:
    """Gives connections, none of which is kept while nobody uses it."""
    monkeypatch.setattr(module, "MAX_IDLE", 0)
    peers = Peers(PeerTerms())
    yield peers
    await peers.close()


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> list[AsyncClient]:
    """Lists the clients that were closed; to close one takes as long as others need to do something meanwhile."""
    clients: list[AsyncClient] = []
    close = AsyncClient.close

    async def slowly(client: AsyncClient) -> None:
        clients.append(client)
        await asyncio.sleep(0.01)
        await close(client)

    monkeypatch.setattr(AsyncClient, "close", slowly)
    return clients


async def test_a_surplus_connection_is_given_to_nobody(
    peers: Peers, closed: list[AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who comes while others are closed gets a connection that nobody closes."""
    monkeypatch.setattr(module, "MAX_IDLE", len(ADDRESSES))
    for address in ADDRESSES:
        async with peers.connected(address):
            pass
    monkeypatch.setattr(module, "MAX_IDLE", 0)

    async def leave() -> None:
        async with peers.connected(ADDRESSES[0]):
            pass

    async with AsyncExitStack() as stack:
        leaving = asyncio.create_task(leave())
        while not closed:  # noqa: ASYNC110 — nothing tells
            await asyncio.sleep(0)
        used = [await stack.enter_async_context(peers.connected(address)) for address in ADDRESSES]
        await leaving
        assert len(closed) == len(ADDRESSES)
        assert not [peer for peer in used if peer.client in closed]


async def test_two_who_close_a_surplus(peers: Peers, closed: list[AsyncClient]) -> None:
    """Transfers that end at the same time close each connection once."""

    async def use(address: Address) -> None:
        async with peers.connected(address):
            await asyncio.sleep(0)

    await asyncio.gather(*map(use, ADDRESSES))
    assert len(closed) == len(set(map(id, closed))) == len(ADDRESSES)
