"""Guarantee: a router that cannot serve a request, or is told not to, holds nothing of it on any server."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from functools import partial

import pytest

from service.servers import BLOCK_TOKENS, Servers
from statepool import AsyncClient, AsyncSession, StatepoolError
from statepool.disagg import Request, Router
from transfer.conftest import FLAGS
from transfer.test_moves import LONG, Engine

HASHES = [b"known"]


async def _commit(session: AsyncSession) -> None:
    block = await session.allocate_blocks(1)
    tokens = [BLOCK_TOKENS]
    await session.commit_blocks(block, prefix_hashes=HASHES, boundary_tokens=tokens, written_through_tokens=tokens)
    await session.free_blocks(block)


async def _held(engine: Engine) -> int:
    return (await engine.session.get_pool()).usage.held_blocks


@pytest.fixture
async def engines(servers: Servers) -> AsyncIterator[list[Engine]]:
    """Starts two servers that know a prefix, with an engine each."""
    async with AsyncExitStack() as stack:
        made = []
        for number in range(2):
            server = servers.shared(*FLAGS, "--max-calls", str(910 + number))
            client = await stack.enter_async_context(AsyncClient(server.target, timeout=LONG))
            made.append(Engine(await stack.enter_async_context(await client.create_session(LONG))))
            await _commit(made[-1].session)
        yield made


async def test_a_worker_that_is_lost(engines: list[Engine]) -> None:
    """Where one server refuses the lookup, its error is raised, and what another one has found is free again."""
    lost = Engine(engines[1].session)
    async with AsyncClient(engines[1].session.target) as client:
        lost.session = await client.create_session(LONG, owner_key="lost")
        await client.create_session(LONG, owner_key="lost", take_over=True)
        router = Router([engines[0], lost], engines)

        with pytest.raises(StatepoolError):
            await router.serve(Request(1, [1] * 20, HASHES))

    assert [await _held(engine) for engine in engines] == [0, 0]


async def test_a_request_that_is_cancelled(engines: list[Engine]) -> None:
    """Whenever it is, what lookups have found or are about to find is free again."""
    router = Router(engines, engines)
    for turns in range(12):
        serving = asyncio.create_task(router.serve(Request(turns, [1] * 20, HASHES)))
        for _ in range(turns):
            await asyncio.sleep(0)
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving

        assert [await _held(engine) for engine in engines] == [0, 0]


class _Interrupted(Engine):
    """An engine to which something happens when it is told to release a sequence."""

    interrupt: Callable[[], object]

    async def release(self, sequence_id: int) -> None:
        """Finishes a sequence."""
        self.interrupt()
        await super().release(sequence_id)


@pytest.mark.parametrize("how", ["cancelled", "failing"])
async def test_a_state_that_has_moved_and_is_not_decoded(engines: list[Engine], how: str) -> None:
    """Its block is free again where the request is cancelled, or the first worker fails, before a worker owns it."""
    first = _Interrupted(engines[0].session)
    serving = asyncio.create_task(Router([first], engines[1:]).serve(Request(1, [1] * 10, [])))
    first.interrupt = serving.cancel if how == "cancelled" else partial(int, "nothing")

    with pytest.raises(asyncio.CancelledError if how == "cancelled" else ValueError):
        await serving

    assert await _held(engines[1]) == 0
