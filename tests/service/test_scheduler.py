"""Guarantee: a scheduler's steps take effect once each, in order, whatever becomes of its connection."""

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.proxy import Proxy, between
from service.servers import BLOCK_TOKENS, CAPACITY, DEADLINE_SECONDS, Server, Servers
from statepool import (
    ALL_RUNNING,
    Admission,
    AsyncClient,
    Client,
    Commits,
    DeadlineExceededError,
    NoticeKind,
    PoolExhaustedError,
    Schedules,
    Session,
    StepOutOfOrderError,
    StreamReplacedError,
)
from statepool_server.service.sequence_service import LAST_ID

STEPS = 24
IDS = [1, 2, 3]
MANY_HASHES = [b"%032d" % number for number in range(60_000)]
"""More than a connection takes at once."""


@pytest.fixture
def proxy(server: Server, tmp_path: Path) -> Iterator[Proxy]:
    """Stands between the client and the server."""
    with between(tmp_path, server.socket) as proxy:
        yield proxy


def computed(client: Client, session_id: int) -> list[int]:
    """Reads the tokens computed of every sequence."""
    return [tokens for page in client.list_sequences(session_id) for tokens in page.num_computed_tokens.tolist()]


def test_cut_connections(client: Client, proxy: Proxy) -> None:
    """A blocking scheduler whose connection breaks at every third step counts every token once."""
    with (
        Client(proxy.target, timeout=DEADLINE_SECONDS) as cut_off,
        cut_off.create_session(60.0) as session,
        session.scheduler() as scheduler,
    ):
        scheduler.step(admit=[Admission(number, 4) for number in IDS])
        scheduler.step(schedule=Schedules(IDS, 4))
        for number in range(STEPS):
            scheduler.send(commit=Commits(ALL_RUNNING), schedule=Schedules(ALL_RUNNING))
            if number % 3 == 0:
                proxy.cut()
            assert scheduler.receive().step == number + 3
        assert computed(client, session.session_id) == [4 + STEPS - 1] * len(IDS)
        scheduler.step(commit=Commits(ALL_RUNNING), finish=IDS)


async def test_cut_connections_async(client: Client, proxy: Proxy) -> None:
    """So does one for asyncio, with two steps under way when the connection breaks."""
    async with (
        AsyncClient(proxy.target, timeout=DEADLINE_SECONDS) as cut_off,
        await cut_off.create_session(60.0) as session,
        session.scheduler() as scheduler,
    ):
        await scheduler.step(admit=[Admission(number, 4) for number in IDS])
        await scheduler.step(schedule=Schedules(IDS, 4))
        for number in range(STEPS // 2):
            for _ in range(2):
                await scheduler.send(commit=Commits(ALL_RUNNING), schedule=Schedules(ALL_RUNNING))
            if number % 3 == 0:
                proxy.cut()
            assert [(await scheduler.receive()).step for _ in range(2)] == [2 * number + 3, 2 * number + 4]
        assert computed(client, session.session_id) == [4 + STEPS - 1] * len(IDS)
        await scheduler.step(commit=Commits(ALL_RUNNING), finish=IDS)


async def test_given_up_answer_is_asked_again(server: Server, client: Client) -> None:
    """A caller that was cancelled while it waited gets the outcome with the next receive; the step counts once."""
    async with (
        AsyncClient(server.target, timeout=DEADLINE_SECONDS) as aio,
        await aio.create_session(60.0) as session,
        session.scheduler() as scheduler,
    ):
        await scheduler.step(admit=[Admission(1, 4)])
        await scheduler.step(schedule=Schedules([1], 4))
        for number in itertools.count(3):
            await scheduler.send(commit=Commits(ALL_RUNNING), schedule=Schedules(ALL_RUNNING))
            waiting = asyncio.ensure_future(scheduler.receive())
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])
            assert (waiting.result() if not waiting.cancelled() else await scheduler.receive()).step == number
            if number == 8:
                break
        assert computed(client, session.session_id) == [4 + 5]


async def test_given_up_send_is_asked_again(server: Server, client: Client) -> None:
    """A caller that was cancelled while it sent gets the outcome with the next receive; the step counts once."""
    async with (
        AsyncClient(server.target, timeout=DEADLINE_SECONDS) as aio,
        await aio.create_session(60.0) as session,
        session.scheduler() as scheduler,
    ):
        sending = asyncio.ensure_future(scheduler.send(admit=[Admission(1, 4)]))
        await asyncio.sleep(0)
        sending.cancel()
        await asyncio.wait([sending])

        assert (await scheduler.receive()).step == 1
        assert computed(client, session.session_id) == [0]


async def test_a_send_that_is_given_up_while_another_task_receives(servers: Servers) -> None:
    """The one who receives goes on over another stream: nobody has cancelled him, and nobody has closed anything."""
    server = servers.start().wait_until_ready()
    async with (
        AsyncClient(server.target, timeout=DEADLINE_SECONDS) as aio,
        await aio.create_session(60.0) as session,
        session.scheduler() as scheduler,
    ):
        with server.frozen():
            await scheduler.send()
            receiving = asyncio.ensure_future(scheduler.receive())
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await scheduler.send(admit=[Admission(1, 2**20, MANY_HASHES)])

        assert (await receiving).step == 1
        assert (await scheduler.receive()).step == 2


@pytest.mark.parametrize("hashes", [[], MANY_HASHES], ids=["small", "more than a connection takes at once"])
async def test_server_that_stands_still(servers: Servers, hashes: list[bytes]) -> None:
    """A step's deadline holds whether its message was written or not; it is received when the server goes on."""
    server = servers.start().wait_until_ready()
    async with (
        AsyncClient(server.target, timeout=DEADLINE_SECONDS) as aio,
        await aio.create_session(60.0) as session,
        session.scheduler() as scheduler,
    ):
        with server.frozen(), pytest.raises(DeadlineExceededError):
            await scheduler.step(admit=[Admission(1, 2**20, hashes)], timeout=0.2)

        assert (await scheduler.receive()).step == 1


def test_refused_step_and_the_one_after_it(session: Session, server: Server) -> None:
    """A refusal has its error and numbers; what was sent after it is refused too, and both can be sent again."""
    blocks = session.allocate_blocks(CAPACITY - 1)
    with session.scheduler() as scheduler:
        scheduler.step(admit=[Admission(1, 4), Admission(2, 4)])
        scheduler.send(schedule=Schedules([1, 2], 4))
        scheduler.send(commit=Commits([1, 2]))
        with pytest.raises(PoolExhaustedError) as full:
            scheduler.receive()
        with pytest.raises(StepOutOfOrderError):
            scheduler.receive()
        session.free_blocks(blocks)
        scheduler.send(schedule=Schedules([1, 2], 4))
        scheduler.send(commit=Commits([1, 2]), finish=[1, 2])

        assert [scheduler.receive().step for _ in range(2)] == [2, 3]
    assert full.value.metadata == {"free": "1", "evictable": "0", "requested": "2"}


def test_three_steps_under_way(session: Session) -> None:
    """A third unanswered step is a mistake of the caller's."""
    with session.scheduler() as scheduler:
        scheduler.send(admit=[Admission(1, 4)])
        scheduler.send(finish=[1])
        with pytest.raises(RuntimeError, match="not received yet"):
            scheduler.send()
        assert [scheduler.receive().step for _ in range(2)] == [1, 2]


def test_another_scheduler_of_the_session(session: Session) -> None:
    """It takes the steps over; the former one raises from then on, and does not take them back."""
    with session.scheduler() as former, session.scheduler() as later:
        later.step(admit=[Admission(1, 4)])
        with pytest.raises(StreamReplacedError):
            former.step()
        with pytest.raises(StreamReplacedError):
            former.receive()
        assert later.step(finish=[1]).usage.sequences == 0


async def test_another_scheduler_of_the_session_async(server: Server, client: Client) -> None:
    """So do those for asyncio."""
    async with (
        AsyncClient(server.target, timeout=DEADLINE_SECONDS) as aio,
        await aio.create_session(60.0) as session,
        session.scheduler() as former,
        session.scheduler() as later,
    ):
        await later.step(admit=[Admission(1, 4)])
        with pytest.raises(StreamReplacedError):
            await former.step()
        with pytest.raises(StreamReplacedError):
            await former.receive()
        assert (await later.step(finish=[1])).usage.sequences == 0


def test_notices(client: Client, server: Server) -> None:
    """A scheduler knows that blocks are short, and that they no longer are."""
    told: list[NoticeKind] = []
    with (
        client.create_session(60.0) as session,
        session.scheduler(on_notice=lambda n: told.append(n.kind)) as scheduler,
    ):
        blocks = session.allocate_blocks(CAPACITY)
        scheduler.step(admit=[Admission(1, 4)])
        pressed = scheduler.is_under_pressure
        session.free_blocks(blocks)
        scheduler.step(finish=[1])

        assert (pressed, scheduler.is_under_pressure) == (True, False)
    assert told == [NoticeKind.PRESSURE, NoticeKind.RELIEF]


@pytest.mark.parametrize(("ids", "size"), [([0, LAST_ID], 1), ([0, 5, LAST_ID], 3), ([0, LAST_ID - 1, LAST_ID], 2)])
def test_pages_of_sequences(client: Client, session: Session, ids: list[int], size: int) -> None:
    """Pages hold every sequence once, from the lowest id that one can have to the highest."""
    session.step(1, admit=[Admission(sequence_id, 4) for sequence_id in ids])

    pages = list(client.list_sequences(session.session_id, page_size=size))

    assert [sequence_id for page in pages for sequence_id in page.sequence_ids.tolist()] == ids


async def test_many_schedulers(server: Server, client: Client) -> None:
    """Schedulers that share a pool disturb each other's counters no more than their prefixes allow."""
    async with AsyncClient(server.target, timeout=DEADLINE_SECONDS) as aio:

        async def drive(number: int) -> list[int]:
            async with await aio.create_session(60.0) as session, session.scheduler() as scheduler:
                admitted = await scheduler.step(admit=[Admission(1, 2 * BLOCK_TOKENS, [b"shared"], namespace="many")])
                found = int(admitted.admissions.num_computed_tokens[0])
                tokens = BLOCK_TOKENS if found == 0 else 1
                await scheduler.step(schedule=Schedules([1], tokens))
                commit = Commits([1], hash_rows=[0], boundary_tokens=[BLOCK_TOKENS], prefix_hashes=[b"shared"])
                await scheduler.step(commit=commit if found == 0 else Commits([1]), schedule=Schedules([1]))
                for _ in range(20):
                    await scheduler.step(commit=Commits(ALL_RUNNING), schedule=Schedules(ALL_RUNNING))
                (page,) = [page async for page in aio.list_sequences(session.session_id)]
                await scheduler.step(commit=Commits(ALL_RUNNING), finish=[1])
                return [found, *(page.num_computed_tokens - found - tokens).tolist()]

        first = await drive(0)
        others = await asyncio.gather(*(drive(number) for number in range(1, 6)))

    assert first == [0, 20]
    assert others == [[BLOCK_TOKENS, 20]] * 5
