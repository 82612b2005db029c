"""Guarantee: moves carry states byte for byte on either way, many at a time; those that fail leave nothing behind."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service.proxy import between
from service.servers import BLOCK_TOKENS, CAPACITY, Server, Servers, until
from statepool import (
    Admission,
    AsyncClient,
    AsyncSession,
    BlockRefs,
    Client,
    Commits,
    DeadlineExceededError,
    PeerUntrustedError,
    Schedules,
    Session,
    prefix_hashes,
)
from statepool.disagg import (
    AsyncPrefixDirectory,
    Moved,
    Prefix,
    PrefixNotFoundError,
    Request,
    Router,
    Via,
    move,
    move_async,
)
from transfer.conftest import FLAGS, WIDE
from transfer.images import fill, images
from transfer.valve import valve

LONG = 60.0


def _prefilled(session: Session, sequence_ids: list[int], tokens: int = 20) -> list[np.ndarray]:
    """Begins sequences whose running blocks hold random states; returns their images."""
    session.step(1, admit=[Admission(sequence_id, 40) for sequence_id in sequence_ids])
    tables = session.step(2, schedule=Schedules(sequence_ids, tokens)).tables
    pool_bytes = session.get_pool()
    expected = [fill(session, tables.blocks(row)[:1], pool_bytes, seed=row) for row in range(len(sequence_ids))]
    session.step(3, commit=Commits(sequence_ids))
    return expected


@pytest.mark.parametrize("via", [Via.AUTO, Via.SERVER, Via.RELAY])
def test_a_sequence(lender: Session, taker: Session, via: Via) -> None:
    """The state of a sequence moves by either way, and is what an admission begins with."""
    expected = _prefilled(lender, [7])

    moved = move(7, source=lender, destination=taker, via=via)

    assert np.array_equal(images(taker, moved.blocks), expected[0])
    assert moved.via is (Via.SERVER if via is Via.AUTO else via)
    outcome = taker.step(1, admit=[Admission(7, 40, imported=moved.imported)])
    assert outcome.admissions.num_computed_tokens.tolist() == [20]


@pytest.mark.parametrize("via", [Via.SERVER, Via.RELAY])
def test_a_prefix(here: Client, lender: Session, taker: Session, via: Via) -> None:
    """The deepest prefix that the source knows moves, and can be committed there under its hash."""
    blocks = lender.allocate_blocks(2)
    expected = fill(lender, blocks, here.get_pool())
    lender.commit_blocks(blocks, prefix_hashes=[b"a", b"b"], boundary_tokens=[16, 32], written_through_tokens=[16, 32])

    moved = move(Prefix([b"a", b"b", b"c"]), source=lender, destination=taker, via=via)

    assert (moved.num_tokens, moved.prefix_hash) == (2 * BLOCK_TOKENS, b"b")
    assert np.array_equal(images(taker, moved.blocks), expected[:, 1:])
    taker.commit_blocks(moved.blocks, prefix_hashes=[b"b"], boundary_tokens=32, written_through_tokens=32)
    with pytest.raises(PrefixNotFoundError):
        move(Prefix([b"x"]), source=lender, destination=taker)


def test_many_at_a_time(lender: Session, taker: Session) -> None:
    """Sequences move side by side, each to its own block."""
    ids = list(range(1, 5))
    expected = _prefilled(lender, ids)

    with ThreadPoolExecutor(len(ids)) as executor:
        moves = [executor.submit(move, number, source=lender, destination=taker) for number in ids]

    for moved, image in zip(moves, expected, strict=True):
        assert np.array_equal(images(taker, moved.result().blocks), image)


def test_servers_that_may_not_reach_each_other(servers: Servers, lender: Session, source: Server) -> None:
    """Where the destination's server may not connect to the source, this process relays, unless it must not."""
    picky = servers.shared(*FLAGS, "--allow-peer", "unix:/nowhere.sock", conv_shape=WIDE)
    expected = _prefilled(lender, [7])
    with picky.client() as client, client.create_session(LONG) as taker:
        with pytest.raises(PeerUntrustedError):
            move(7, source=lender, destination=taker, via=Via.SERVER)

        moved = move(7, source=lender, destination=taker)

        assert moved.via is Via.RELAY
        assert np.array_equal(images(taker, moved.blocks), expected[0])


def test_a_deadline(
    here: Client, there: Client, lender: Session, taker: Session, source: Server, tmp_path: Path
) -> None:
    """A move that takes too long gives the lease and the blocks back."""
    _prefilled(lender, [7])
    with valve(tmp_path, source.socket, 500_000) as slow, pytest.raises(DeadlineExceededError):
        move(7, source=lender, destination=taker, address=slow.target, timeout=1.0)

    assert not list(here.list_transfers())
    until(lambda: there.get_pool().usage.free_blocks == CAPACITY, "the blocks to be free")


@pytest.mark.parametrize("via", [Via.SERVER, Via.RELAY])
async def test_a_cancelled_task(
    here: Client, there: Client, lender: Session, source: Server, destination: Server, tmp_path: Path, via: Via
) -> None:
    """Cancelling the task that moves gives the lease and the blocks back, on both ways."""
    with valve(tmp_path, source.socket, 500_000) as slow:
        async with (
            AsyncClient(slow.target if via is Via.RELAY else source.target) as near,
            AsyncClient(destination.target) as far,
        ):
            taker = await far.create_session(LONG)
            owner = await near.create_session(LONG)
            transferred = await owner.allocate_blocks(1)
            moving = asyncio.create_task(
                move_async(transferred, source=owner, destination=taker, address=slow.target, via=via)
            )
            await asyncio.to_thread(slow.wait_until_shut)
            moving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await moving
            slow.open()
            await taker.close()
    until(lambda: there.get_pool().usage.free_blocks == CAPACITY, "the blocks to be free")
    until(lambda: not list(here.list_transfers()), "the transfer to end")


@pytest.mark.parametrize("state", ["prefix", "blocks"])
async def test_a_task_that_is_cancelled_while_a_call_is_on_its_way(
    here: Client, lender: Session, taker: Session, source: Server, destination: Server, tmp_path: Path, state: str
) -> None:
    """What the server gives to a task that waits no longer is given back: hits and leases."""
    blocks = lender.allocate_blocks(1)
    lender.commit_blocks(blocks, prefix_hashes=[b"a"], boundary_tokens=[16], written_through_tokens=[16])
    lender.free_blocks(blocks)
    with between(tmp_path, source.socket) as proxy:
        async with AsyncClient(proxy.target) as near, AsyncClient(destination.target) as far:
            owner, other = await near.create_session(LONG), await far.create_session(LONG)
            what = Prefix([b"a"]) if state == "prefix" else await owner.allocate_blocks(1)
            await owner.get_pool()
            held = here.get_pool().usage.held_blocks
            proxy.hold_answers(0.5)
            moving = asyncio.create_task(move_async(what, source=owner, destination=other, address=source.target))
            await asyncio.to_thread(until, lambda: _gave(here, held), "the server to give what nobody hears of")
            moving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await moving

            assert not list(here.list_transfers())
            assert here.get_pool().usage.held_blocks == held


def test_a_reference_that_cannot_be_given_back(
    here: Client, lender: Session, taker: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was looked up and lent is lent no longer where giving the reference back fails."""
    blocks = lender.allocate_blocks(1)
    lender.commit_blocks(blocks, prefix_hashes=[b"a"], boundary_tokens=[16], written_through_tokens=[16])

    def fails(*_: object, **__: object) -> None:
        raise DeadlineExceededError("too late")

    monkeypatch.setattr(lender, "free_blocks", fails)
    with pytest.raises(DeadlineExceededError):
        move(Prefix([b"a"]), source=lender, destination=taker)

    assert not list(here.list_transfers())


async def test_a_task_that_is_cancelled_while_a_reference_is_given_back(
    here: Client, there: Client, source: Server, destination: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was looked up is free again then, and lent no longer."""
    async with AsyncClient(source.target) as near, AsyncClient(destination.target) as far:
        owner, other = await near.create_session(LONG), await far.create_session(LONG)
        blocks = await owner.allocate_blocks(1)
        await owner.commit_blocks(blocks, prefix_hashes=[b"a"], boundary_tokens=[16], written_through_tokens=[16])
        await owner.free_blocks(blocks)
        free = owner.free_blocks

        async def cancelled(blocks: BlockRefs, **rest: float) -> None:
            moving.cancel()
            await free(blocks, **rest)

        monkeypatch.setattr(owner, "free_blocks", cancelled)
        moving = asyncio.create_task(move_async(Prefix([b"a"]), source=owner, destination=other))
        with pytest.raises(asyncio.CancelledError):
            await moving

        assert not list(here.list_transfers())
        until(lambda: here.get_pool().usage.held_blocks == 0, "the reference to be given back")


def _gave(client: Client, held: int) -> bool:
    """Tells whether a server has lent something, or let somebody hold more blocks than before."""
    return client.get_pool().usage.held_blocks > held or any(client.list_transfers())


class Engine:
    """A worker whose model adds the tokens up: the state after tokens is their sum, in every byte of every rank."""

    def __init__(self, session: AsyncSession) -> None:
        self.session = session
        self.computed = 0
        self._step = 0

    async def prefill(self, request: Request) -> int:
        """Computes a prompt, chunk by chunk, from what is found of it on."""
        number, tokens = request.request_id, list(request.token_ids)
        outcome = await self._next(admit=[Admission(number, len(tokens), request.prefix_hashes)])
        done = int(outcome.admissions.num_computed_tokens[0])
        while done < len(tokens) - 1:
            end = min((done // BLOCK_TOKENS + 1) * BLOCK_TOKENS, len(tokens) - 1)
            block = (await self._next(schedule=Schedules([number], end - done))).tables.blocks(0)[:1]
            await self._add(block, sum(tokens[done:end]))
            self.computed += end - done
            at_boundary = end % BLOCK_TOKENS == 0
            await self._next(
                commit=Commits(
                    [number],
                    hash_rows=[0] if at_boundary else [],
                    boundary_tokens=[end] if at_boundary else [],
                    prefix_hashes=[request.prefix_hashes[end // BLOCK_TOKENS - 1]] if at_boundary else [],
                )
            )
            done = end
        return number

    async def release(self, sequence_id: int) -> None:
        """Finishes a sequence."""
        await self._next(finish=[sequence_id])

    async def decode(self, request: Request, state: Moved) -> int:
        """Adds the last token to what has come."""
        number = request.request_id
        await self._next(admit=[Admission(number, len(request.token_ids), imported=state.imported)])
        block = (await self._next(schedule=Schedules([number], 1))).tables.blocks(0)[:1]
        await self._add(block, request.token_ids[-1])
        result = int((await self.session.read_images(block))[0, 0])
        await self._next(commit=Commits([number]), finish=[number])
        return result

    async def _next(self, **what: object):  # type: ignore[no-untyped-def]
        self._step += 1
        return await self.session.step(self._step, **what)  # type: ignore[arg-type]

    async def _add(self, block, number: int) -> None:  # type: ignore[no-untyped-def]
        for rank in range(2):
            image = await self.session.read_images(block, rank_index=rank)
            await self.session.write_blocks(block, image + np.uint8(number % 256), rank_index=rank)


@pytest.fixture
async def engines(servers: Servers) -> AsyncIterator[list[Engine]]:
    """Starts three servers with an engine each."""
    async with AsyncExitStack() as stack:
        made = []
        for number in range(3):
            server = servers.shared(*FLAGS, "--max-calls", str(900 + number))
            client = await stack.enter_async_context(AsyncClient(server.target, timeout=LONG))
            made.append(Engine(await stack.enter_async_context(await client.create_session(LONG))))
        yield made


async def test_the_router(engines: list[Engine]) -> None:
    """Requests of one prompt are prefilled where it is known, and decoded on another server, to the same result."""
    router = Router(engines[:2], engines[2:])
    prompts = [[*range(3, 43)], [*range(3, 40), 99, 98, 97], [*range(50, 90)]]
    requests = [Request(number, prompt, prefix_hashes(prompt, BLOCK_TOKENS)) for number, prompt in enumerate(prompts)]

    results = [await router.serve(request) for request in requests]

    assert results == [sum(prompt) % 256 for prompt in prompts]
    assert sum(engine.computed for engine in engines[:2]) == 39 + 39 - 2 * BLOCK_TOKENS + 39
    assert engines[2].computed == 0
    for engine in engines:
        usage = (await engine.session.get_pool()).usage
        assert (usage.sequences, usage.busy_blocks, usage.held_blocks) == (0, 0, 0)


async def test_the_router_asks_only_whom_the_directory_names(engines: list[Engine]) -> None:
    """With a directory, one server of those that compute prompts is asked for a prefix; without a hit, all are."""
    prompt = [*range(103, 143)]
    request = Request(7, prompt, prefix_hashes(prompt, BLOCK_TOKENS))
    async with AsyncPrefixDirectory([engine.session.target for engine in engines[:2]]) as directory:
        await directory.wait_until_current(LONG)
        router = Router(engines[:2], engines[2:], directory=directory)
        await router.serve(request)
        while len(directory.lookup(request.prefix_hashes)) != 1:  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0.01)
        before = [await _lookups(engine) for engine in engines[:2]]

        assert await router.serve(replace(request, request_id=8)) == sum(prompt) % 256

        asked = [await _lookups(engine) - count for engine, count in zip(engines[:2], before, strict=True)]
        assert sorted(asked) == [0, 1]


async def _lookups(engine: Engine) -> int:
    async with AsyncClient(engine.session.target) as client:
        calls = (await client.get_server_info()).calls
    return sum(count for name, count in calls.items() if "/LookupPrefix:" in name)
