"""Guarantee: far more load than can be served costs neither leases nor memory, and is refused as what it is."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from service.servers import CAPACITY, Server, Servers
from statepool import AsyncClient, AsyncSession, Client, DeadlineExceededError, OverloadedError, PoolExhaustedError

SESSIONS = 12
FLOOD = 1500
"""Calls that are due at the same moment."""
TTL_SECONDS = 6.0
RETRIES_OFF = (("grpc.enable_retries", 0),)
"""So that a refusal is seen, and not asked again until it is none."""
GROWTH = 1.15
"""What a second flood may add to the memory that the server needed for the first."""


@pytest.fixture
def server(servers: Servers) -> Server:
    """Gives a server with little room."""
    return servers.shared("--max-calls", "16", "--max-session-calls", "8", "--max-queued-copies", "4")


async def _call(session: AsyncSession, outcomes: Counter[str]) -> None:
    try:
        blocks = await session.allocate_blocks(1, timeout=20.0)
    except (OverloadedError, PoolExhaustedError, DeadlineExceededError) as error:
        outcomes[type(error).__name__] += 1
        return
    await session.free_blocks(blocks, timeout=20.0)
    outcomes["served"] += 1


async def _flood(target: str) -> Counter[str]:
    """Floods a server from many sessions, whose leases are short; tells what became of its calls."""
    outcomes: Counter[str] = Counter()
    async with AsyncClient(target, options=RETRIES_OFF) as client:
        sessions = [await client.create_session(TTL_SECONDS) for _ in range(SESSIONS)]
        async with asyncio.TaskGroup() as calls:
            for number in range(FLOOD):
                calls.create_task(_call(sessions[number % SESSIONS], outcomes))
        await asyncio.sleep(TTL_SECONDS)  # a lease that was not renewed in time shows by now
        outcomes["lost"] = sum(session.error is not None for session in sessions)
    return outcomes


def _resident_bytes(server: Server) -> int:
    """Tells how much memory of its own the server has, the shared arena apart."""
    text = Path(f"/proc/{server.process.pid}/status").read_text(encoding="ascii")
    return int(text.partition("RssAnon:")[2].split()[0]) * 1024


def test_floods(server: Server, client: Client) -> None:
    """Each call is served or refused as what it is; no lease or block is lost, and a second flood costs nothing."""
    first = asyncio.run(_flood(server.target))
    after_first = _resident_bytes(server)
    second = asyncio.run(_flood(server.target))

    for outcomes in (first, second):
        assert outcomes["lost"] == 0
        assert outcomes["served"] > 0
        assert outcomes["OverloadedError"] + outcomes["PoolExhaustedError"] > 0
        assert outcomes.total() == FLOOD
    assert _resident_bytes(server) < GROWTH * after_first
    assert client.get_pool().usage.free_blocks == CAPACITY
