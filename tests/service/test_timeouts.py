"""Guarantee: a deadline may be as long as one likes; what is none is refused before anything is sent."""

import math
from contextlib import closing

import pytest

from service.servers import Server
from service.test_commands import run
from statepool import AsyncClient, Client, Session

ENDLESS = [math.inf, 1e10, 1e300]
NONE = [math.nan, -1.0, -math.inf]


@pytest.mark.parametrize("seconds", ENDLESS)
def test_endless(server: Server, seconds: float) -> None:
    """Calls, streams and steps are answered as with any deadline, be it the client's or their own."""
    with Client(server.target, timeout=seconds) as client, client.create_session(60.0) as session:
        blocks = session.allocate_blocks(1, timeout=seconds)
        assert len(session.read_images(blocks, timeout=seconds)) == 1
        session.write_blocks(blocks, session.read_images(blocks), timeout=seconds)
        with session.scheduler() as scheduler:
            assert scheduler.step(timeout=seconds).step == 1
        with closing(client.watch_blocks(timeout=seconds)) as changes:
            assert next(changes).is_first


@pytest.mark.parametrize("seconds", ENDLESS)
async def test_endless_in_asyncio(server: Server, seconds: float) -> None:
    """The same for asyncio."""
    async with (
        AsyncClient(server.target, timeout=seconds) as client,
        await client.create_session(60.0, timeout=seconds) as session,
        session.scheduler() as scheduler,
    ):
        assert len(await session.allocate_blocks(1, timeout=seconds)) == 1
        assert (await scheduler.step(timeout=seconds)).step == 1


@pytest.mark.parametrize("seconds", NONE)
def test_none(client: Client, session: Session, seconds: float) -> None:
    """A step is not sent, nor is anything else."""
    with session.scheduler() as scheduler:
        for call in (scheduler.step, client.get_pool, session.delete):
            with pytest.raises(ValueError, match=r"^timeout: -?(nan|inf|1\.0) is no number of seconds from 0 on"):
                call(timeout=seconds)
        assert scheduler.unreceived_steps == ()
    with pytest.raises(ValueError, match=r"^timeout: "):
        Client("unix:/run/s.sock", timeout=seconds)
    with pytest.raises(ValueError, match=r"^resume_within: "):
        client.create_session(60.0, resume_within=seconds)


@pytest.mark.parametrize("seconds", NONE)
async def test_none_in_asyncio(server: Server, seconds: float) -> None:
    """The same for asyncio."""
    async with (
        AsyncClient(server.target) as client,
        await client.create_session(60.0) as session,
        session.scheduler() as scheduler,
    ):
        for call in (scheduler.step, client.get_pool, session.delete):
            with pytest.raises(ValueError, match=r"^timeout: "):
                await call(timeout=seconds)
        assert scheduler.unreceived_steps == ()


def test_a_probe_with_an_endless_deadline(server: Server) -> None:
    """The commands take any duration as well."""
    assert run("health", "--target", server.target, "--timeout", "9999999999h").stdout == "SERVING\n"
