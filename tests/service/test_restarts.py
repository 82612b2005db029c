"""Guarantee: a client knows at the next answer that its server was restarted, and goes on as its owner asked it to."""

import asyncio
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.conftest import plain_stubs
from service.proxy import Proxy
from service.raw import Stubs, ref_of
from service.servers import BLOCK_TOKENS, CAPACITY, DEADLINE_SECONDS, Server, Servers, until
from statepool import (
    Admission,
    AsyncClient,
    AsyncSession,
    Client,
    Commits,
    IncarnationMismatchError,
    Schedules,
    Session,
    SessionFencedError,
    SessionNotFoundError,
    StatepoolError,
    UnavailableError,
)
from statepool.v1.session_pb2 import DeleteSessionRequest

LONG, SHORT = 60.0, 2.0


class Losses:
    """Collects what ``on_lost`` was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def __call__(self, _session: Session | AsyncSession, error: StatepoolError) -> None:
        """Takes note."""
        self.told.append(error.reason)


@pytest.fixture
def mortal(servers: Servers) -> Iterator[Server]:
    """Starts a server that the test may kill."""
    server = servers.start("--recovery-grace", "100ms").wait_until_ready()
    yield server
    started()
    server.wait_until_ready()


_starting: list[threading.Timer] = []


def restart(server: Server) -> None:
    """Kills a server, which runs or is about to, and starts it again, in a while."""
    started()
    server.kill()
    _starting.append(threading.Timer(0.2, server.start))
    _starting[0].start()


def started() -> None:
    """Waits until the server that was restarted last has been started."""
    while _starting:
        _starting.pop().join()


def refused(client: Client | AsyncClient) -> None:
    """Waits until a client that opens a session in place of another has been refused it."""
    calls = client.stats.calls
    until(lambda: client.stats.calls >= calls + 2, "another attempt after one that was refused")


def test_a_restart_loses_a_session(mortal: Server) -> None:
    """Unless its owner asked for something else, every call of it fails, for good; another session can be opened."""
    losses = Losses()
    with mortal.client() as client:
        session = client.create_session(LONG, on_lost=losses)
        session.allocate_blocks(1)
        mortal.kill()
        mortal.start()
        mortal.wait_until_ready()

        for _ in range(2):
            with pytest.raises(IncarnationMismatchError):
                session.allocate_blocks(1)
        with pytest.raises(IncarnationMismatchError):
            session.scheduler().open()
        with client.create_session(LONG) as another:
            another.allocate_blocks(1)

    assert losses.told == ["INCARNATION_MISMATCH"]
    assert (client.stats.restarts, client.stats.lost_sessions, client.stats.resumed_sessions) == (1, 1, 0)


def test_a_forgetful_server_loses_a_session_that_may_be_resumed(servers: Servers, tmp_path: Path) -> None:
    """A server that has not recovered the state says so, and whoever waits for the session gets that error at once."""
    mortal = servers.start().wait_until_ready()
    losses = Losses()
    with mortal.client() as client:
        session = client.create_session(LONG, resume_within=LONG, on_lost=losses)
        scheduler = session.scheduler()
        scheduler.open()
        mortal.kill()
        for arena in mortal.state_dir.rglob("*"):
            arena.unlink(missing_ok=True) if arena.is_file() else None
        mortal.start()

        with pytest.raises(IncarnationMismatchError):
            session.allocate_blocks(1, timeout=DEADLINE_SECONDS)
        with pytest.raises(IncarnationMismatchError):
            scheduler.step(timeout=DEADLINE_SECONDS)
    assert losses.told == ["INCARNATION_MISMATCH"]


def test_calls_wait_within_their_deadline(mortal: Server) -> None:
    """A server that stays away loses nothing that may be resumed, but nobody waits longer for it than he would."""
    losses = Losses()
    with mortal.client() as client:
        session = client.create_session(LONG, resume_within=LONG, on_lost=losses)
        scheduler = session.scheduler()
        scheduler.open()
        mortal.kill()

        with pytest.raises(UnavailableError):
            session.allocate_blocks(1, timeout=0.3)
        with pytest.raises(UnavailableError):
            scheduler.step(timeout=0.3)

        assert session.error is None
        assert losses.told == []
        mortal.start()
        session.close()


def test_whoever_waits_for_a_session_that_is_closed(mortal: Server) -> None:
    """Is told at once: nobody renews it any more."""
    with ThreadPoolExecutor(2) as executor, mortal.client() as client:
        session = client.create_session(LONG, resume_within=LONG)
        with session.scheduler() as scheduler:
            mortal.kill()
            calls = client.stats.calls
            waiting: list[Future[Any]] = [executor.submit(session.allocate_blocks, 1), executor.submit(scheduler.step)]
            until(lambda: client.stats.calls > calls and session._lease.is_suspended, "the call to be made")  # noqa: SLF001

            session.close()

            for call in waiting:
                with pytest.raises(SessionNotFoundError):
                    call.result(DEADLINE_SECONDS / 2)
        mortal.start()


async def test_whoever_waits_for_a_session_that_is_closed_async(mortal: Server) -> None:
    """So it is with the client for asyncio."""
    async with AsyncClient(mortal.target, timeout=DEADLINE_SECONDS) as client:
        session = await client.create_session(LONG, resume_within=LONG)
        async with session.scheduler() as scheduler:
            mortal.kill()
            waiting = [asyncio.ensure_future(call) for call in (session.allocate_blocks(1), scheduler.step())]
            await asyncio.to_thread(until, lambda: session._lease.is_suspended, "the session to be suspended")  # noqa: SLF001

            await session.close()

            async with asyncio.timeout(DEADLINE_SECONDS / 2):
                for call in waiting:
                    with pytest.raises(SessionNotFoundError):
                        await call
        mortal.start()


def test_deleting_ends_the_handle_of_a_suspended_session(mortal: Server) -> None:
    """Whether the server hears of it or not, the session is over here, and closing it has nothing to wait for."""
    with mortal.client() as client:
        session = client.create_session(LONG, resume_within=LONG)
        mortal.kill()
        with pytest.raises(UnavailableError):
            session.allocate_blocks(1, timeout=0.2)

        with pytest.raises(UnavailableError):
            session.delete(timeout=0.2)

        assert isinstance(session.error, SessionNotFoundError)
        assert client.stats.lost_sessions == 0
        mortal.start()


async def test_deleting_ends_the_handle_of_a_suspended_session_async(mortal: Server) -> None:
    """The client for asyncio does the same, whether it waits in vain or is told to stop."""
    async with AsyncClient(mortal.target, timeout=DEADLINE_SECONDS) as client:
        sessions = [await client.create_session(LONG, resume_within=LONG) for _ in range(2)]
        mortal.kill()
        for session in sessions:
            with pytest.raises(UnavailableError):
                await session.allocate_blocks(1, timeout=0.2)

        with pytest.raises(UnavailableError):
            await sessions[0].delete(timeout=0.2)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(sessions[1].delete(), 0.1)

        assert all(isinstance(session.error, SessionNotFoundError) for session in sessions)
        mortal.start()


async def test_a_client_whose_closing_is_cancelled_is_closed(server: Server, tmp_path: Path) -> None:
    """Sessions that cannot be ended end by themselves; the connection is not left open for them."""
    proxy = Proxy(tmp_path / "p.sock", server.socket)
    client = AsyncClient(proxy.target, timeout=DEADLINE_SECONDS)
    await client.create_session(LONG, owner_key="k")
    proxy.stall(LONG)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.close(), 0.1)

    with pytest.raises(RuntimeError, match="the client is closed"):
        await client.get_pool()
    proxy.close()
    with server.client() as heir:
        heir.create_session(LONG, owner_key="k", take_over=True).close()


def test_another_session_in_place_of_a_lost_one(mortal: Server) -> None:
    """It has the same terms, nothing of the former one's, and is replaced in turn."""
    opened: queue.Queue[Session] = queue.Queue()
    with mortal.client() as client:
        first = client.create_session(SHORT, owner_key="engine", on_recreated=opened.put)
        held = first.allocate_blocks(2)
        for _ in range(2):
            mortal.kill()
            mortal.start()
            mortal.wait_until_ready()
            client.get_pool()
            session = opened.get(timeout=DEADLINE_SECONDS)

            assert (session.ttl, session.owner_key, session.error) == (SHORT, "engine", None)
            assert session.incarnation == client.get_pool().incarnation
            with pytest.raises(StatepoolError):
                session.free_blocks(held)
        session.close()


async def test_another_session_in_place_of_a_lost_one_async(mortal: Server) -> None:
    """The client for asyncio does the same."""
    opened: asyncio.Queue[AsyncSession] = asyncio.Queue()
    async with AsyncClient(mortal.target, timeout=DEADLINE_SECONDS) as client:
        lost = await client.create_session(LONG, on_recreated=opened.put_nowait)
        mortal.kill()
        mortal.start()
        await asyncio.to_thread(mortal.wait_until_ready)
        with pytest.raises(IncarnationMismatchError):
            await lost.allocate_blocks(1)

        session = await asyncio.wait_for(opened.get(), DEADLINE_SECONDS)

        assert len(await session.allocate_blocks(CAPACITY)) == CAPACITY
        await session.close()


def test_a_session_that_was_taken_over_is_not_replaced(server: Server, client: Client) -> None:
    """Its successor has it: two would end each other's for ever."""
    losses, opened = Losses(), queue.Queue[Session]()
    with server.client() as former:
        session = former.create_session(LONG, owner_key="one", on_lost=losses, on_recreated=opened.put)
        with client.create_session(LONG, owner_key="one", take_over=True):
            with pytest.raises(SessionFencedError):
                session.allocate_blocks(1)

            assert former.stats.lost_sessions == 1
            assert opened.empty()
    assert losses.told == ["SESSION_FENCED"]


def test_a_successor_takes_nothing_from_a_living_owner(server: Server, client: Client, stubs: Stubs) -> None:
    """It waits for the owner key, also where the lost session was opened by a take-over."""
    opened: queue.Queue[Session] = queue.Queue()
    with server.client() as former:
        lost = former.create_session(LONG, owner_key="one", take_over=True, on_recreated=opened.put)
        stubs.sessions.DeleteSession(DeleteSessionRequest(session=ref_of(lost)))
        with client.create_session(LONG, owner_key="one") as session:
            with pytest.raises(SessionNotFoundError):
                lost.allocate_blocks(1)
            refused(former)

            session.allocate_blocks(1)

        assert not opened.get(timeout=DEADLINE_SECONDS).taken_over


async def test_a_successor_takes_nothing_from_a_living_owner_async(
    server: Server, client: Client, stubs: Stubs
) -> None:
    """The client for asyncio does the same."""
    opened: asyncio.Queue[AsyncSession] = asyncio.Queue()
    async with AsyncClient(server.target, timeout=DEADLINE_SECONDS) as former:
        lost = await former.create_session(LONG, owner_key="one", take_over=True, on_recreated=opened.put_nowait)
        stubs.sessions.DeleteSession(DeleteSessionRequest(session=ref_of(lost)))
        with client.create_session(LONG, owner_key="one") as session:
            with pytest.raises(SessionNotFoundError):
                await lost.allocate_blocks(1)
            await asyncio.to_thread(refused, former)

            session.allocate_blocks(1)

        successor = await asyncio.wait_for(opened.get(), DEADLINE_SECONDS)
        assert not successor.taken_over
        await successor.close()


def test_a_successor_waits_for_room(tight: Server) -> None:
    """A server that holds as many sessions as it may is asked again."""
    opened: queue.Queue[Session] = queue.Queue()
    with tight.client() as former, tight.client() as others, plain_stubs(tight) as stubs:
        lost = former.create_session(LONG, on_recreated=opened.put)
        stubs.sessions.DeleteSession(DeleteSessionRequest(session=ref_of(lost)))
        first, *_ = [others.create_session(LONG) for _ in range(3)]
        with pytest.raises(SessionNotFoundError):
            lost.allocate_blocks(1)
        refused(former)

        first.close()

        assert opened.get(timeout=DEADLINE_SECONDS).error is None


async def test_a_successor_waits_for_room_async(tight: Server) -> None:
    """The client for asyncio does the same."""
    opened: asyncio.Queue[AsyncSession] = asyncio.Queue()
    async with AsyncClient(tight.target, timeout=DEADLINE_SECONDS) as former:
        with tight.client() as others, plain_stubs(tight) as stubs:
            lost = await former.create_session(LONG, on_recreated=opened.put_nowait)
            stubs.sessions.DeleteSession(DeleteSessionRequest(session=ref_of(lost)))
            first, *_ = [others.create_session(LONG) for _ in range(3)]
            with pytest.raises(SessionNotFoundError):
                await lost.allocate_blocks(1)
            await asyncio.to_thread(refused, former)

            first.close()

            assert (await asyncio.wait_for(opened.get(), DEADLINE_SECONDS)).error is None


def test_a_server_out_of_reach(server: Server, client: Client, tmp_path: Path) -> None:
    """A call of a session that may be resumed waits until the connection is back, and so does its scheduler."""
    path, losses = tmp_path / "p.sock", Losses()
    proxy = Proxy(path, server.socket)
    with Client(proxy.target, timeout=DEADLINE_SECONDS) as cut_off:
        session = cut_off.create_session(LONG, resume_within=LONG, on_lost=losses)
        scheduler = session.scheduler()
        scheduler.open()
        for _ in range(2):
            proxy.close()
            path.unlink()
            with pytest.raises(UnavailableError):
                session.allocate_blocks(1, timeout=0.2)
            back: Future[Proxy] = Future()
            threading.Timer(0.5, lambda back=back: back.set_result(Proxy(path, server.socket))).start()

            assert len(session.allocate_blocks(1)) == 1
            scheduler.step()
            proxy = back.result()

        assert cut_off.stats.lost_sessions == cut_off.stats.restarts == 0
        assert client.get_session(session.session_id).block_count == 2
        session.close()
    proxy.close()
    assert losses.told == []


class TestRecovery:
    """A server that was killed and has recovered its state."""

    def test_calls(self, mortal: Server) -> None:
        """Blocks, their contents and their generations go on being valid; each call takes effect once."""
        losses = Losses()
        with mortal.client() as client:
            with client.create_session(LONG, owner_key="a", resume_within=LONG, on_lost=losses) as session:
                first, before = session.allocate_blocks(2), session.incarnation
                session.write_blocks(first, np.full((2, 1024), 7, np.uint8))
                written = session.read_images(first)
                for _ in range(2):
                    restart(mortal)
                    more = session.allocate_blocks(1)
                    assert np.array_equal(session.read_images(first), written)
                    session.free_blocks(more)

                assert (session.epoch, losses.told) == (1, [])
                assert session.incarnation not in (0, before)
                assert before in client.get_server_info().continued_incarnations
                assert client.get_session(session.session_id).block_count == 2
            until(lambda: client.get_pool().usage.free_blocks == CAPACITY, "every block to be free")
        assert (client.stats.restarts, client.stats.resumed_sessions, client.stats.lost_sessions) == (2, 2, 0)

    async def test_calls_async(self, mortal: Server) -> None:
        """The client for asyncio does the same."""
        async with AsyncClient(mortal.target, timeout=DEADLINE_SECONDS) as client:
            async with await client.create_session(LONG, resume_within=LONG) as session:
                blocks = await session.allocate_blocks(2)
                restart(mortal)
                await session.free_blocks(blocks)
                assert (await client.get_pool()).usage.held_blocks == 0
            assert client.stats.resumed_sessions == 1

    def test_schedulers(self, mortal: Server) -> None:
        """A scheduler with two steps under way gets both outcomes, and every token is counted once."""
        with (
            mortal.client() as client,
            client.create_session(LONG, resume_within=LONG) as session,
            session.scheduler() as scheduler,
        ):
            scheduler.step(admit=[Admission(1, 2 * BLOCK_TOKENS)], schedule=Schedules([1], 4))
            for number in range(2, 12, 2):
                scheduler.send(commit=_committed(), schedule=Schedules([1], 1))
                scheduler.send(commit=_committed(), schedule=Schedules([1], 1))
                restart(mortal)
                assert [scheduler.receive().step for _ in range(2)] == [number, number + 1]
            (page,) = client.list_sequences(session.session_id)
            assert page.num_computed_tokens.tolist() == [4 + 9]
            scheduler.step(commit=_committed(), finish=[1])

    async def test_schedulers_async(self, mortal: Server) -> None:
        """So does one for asyncio."""
        async with AsyncClient(mortal.target, timeout=DEADLINE_SECONDS) as client:
            session = await client.create_session(LONG, resume_within=LONG)
            async with session, session.scheduler() as scheduler:
                await scheduler.step(admit=[Admission(1, 2 * BLOCK_TOKENS)], schedule=Schedules([1], 4))
                await scheduler.send(commit=_committed(), schedule=Schedules([1], 1))
                restart(mortal)
                assert (await scheduler.receive()).step == 2
                await scheduler.step(commit=_committed(), finish=[1])

    def test_a_session_is_closed_without_being_resumed(self, mortal: Server) -> None:
        """Whoever closes a session as the first thing after a restart leaves nothing behind."""
        with mortal.client() as client:
            deleted, closed = (client.create_session(LONG, resume_within=LONG) for _ in range(2))
            deleted.allocate_blocks(3)
            closed.allocate_blocks(1)
            mortal.kill()
            mortal.start()
            mortal.wait_until_ready()

            assert deleted.delete() == 3
            closed.close()

            usage = client.get_pool().usage
        assert (usage.sessions, usage.free_blocks) == (0, CAPACITY)

    def test_without_being_asked(self, mortal: Server) -> None:
        """A session whose owner did not ask for it is lost here, and ends at the server when its lease does."""
        with mortal.client() as client:
            session = client.create_session(LONG)
            mortal.kill()
            mortal.start()
            mortal.wait_until_ready()
            with pytest.raises(IncarnationMismatchError):
                session.allocate_blocks(1)


def _committed() -> Commits:
    return Commits([1])
