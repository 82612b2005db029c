"""Guarantee: a call ends by the deadline that its caller gave, whatever it has to ask or to wait for first."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.proxy import between
from service.servers import DEADLINE_SECONDS, IMAGE_BYTES, Servers
from statepool import AsyncClient, Client, StatepoolError

IMAGE = bytes(IMAGE_BYTES)
GIVEN, WAITED = 7.0, 6.0
"""Deadline of calls that wait for their session, and how long they do; who gave the deadline twice would take both."""


def seconds_until_it_fails(call: Callable[[], object]) -> float:
    """Makes a call that must fail, and tells how long that took."""
    began = time.monotonic()
    with pytest.raises(StatepoolError):
        call()
    return time.monotonic() - began


def test_the_first_stream_of_a_client(servers: Servers) -> None:
    """A client that does not know the pool yet asks for it within the deadline of the call that needs it."""
    server = servers.start().wait_until_ready()
    with server.client() as client, client.create_session(60.0) as session:
        blocks = session.allocate_blocks(1)
        session.commit_blocks(blocks, prefix_hashes=[b"a"], boundary_tokens=16, written_through_tokens=16)
        transfer = session.create_transfer(blocks)
        with server.frozen():
            for call in (
                lambda: session.read_images(blocks, timeout=0.1),
                lambda: list(session.read_blocks(blocks, timeout=0.1)),
                lambda: session.write_blocks(blocks, IMAGE, timeout=0.1),
                lambda: list(session.pull_blocks(transfer, timeout=0.1)),
                lambda: list(session.pull_unchecked(transfer, timeout=0.1)),
                lambda: session.receive_transfer(transfer, source=server.target, timeout=0.1),
            ):
                assert seconds_until_it_fails(call) < DEADLINE_SECONDS / 2


async def test_the_first_stream_of_a_client_async(servers: Servers) -> None:
    """So does the client for asyncio."""
    server = servers.start().wait_until_ready()
    async with AsyncClient(server.target, timeout=DEADLINE_SECONDS) as client:
        session = await client.create_session(60.0)
        blocks = await session.allocate_blocks(1)
        transfer = await session.create_transfer(blocks)
        with server.frozen():
            began = time.monotonic()
            for call in (
                session.read_images(blocks, timeout=0.1),
                anext(session.read_blocks(blocks, timeout=0.1)),
                session.write_blocks(blocks, IMAGE, timeout=0.1),
                anext(session.pull_blocks(transfer, timeout=0.1)),
                anext(session.pull_unchecked(transfer, timeout=0.1)),
                session.receive_transfer(transfer, source=server.target, timeout=0.1),
            ):
                with pytest.raises(StatepoolError):
                    await call
            assert time.monotonic() - began < DEADLINE_SECONDS / 2


def test_a_session_that_is_resumed_late(servers: Servers, tmp_path: Path) -> None:
    """What a call has waited for its session is part of its deadline, also where the bytes come as a stream."""
    server = servers.start().wait_until_ready()
    with between(tmp_path, server.socket) as proxy, Client(proxy.target, timeout=DEADLINE_SECONDS) as client:
        session, deleted = (client.create_session(60.0, resume_within=60.0) for _ in range(2))
        blocks = session.allocate_blocks(2)
        session.read_images(blocks)
        lease, leases = session._lease, session._transport.leases  # noqa: SLF001 - else it cannot be timed
        proxy.hold_answers(WAITED)
        with lease.watched(lambda: proxy.hold_answers(DEADLINE_SECONDS)):  # nothing after the renewal is answered
            leases.suspend(leases.live())
            with ThreadPoolExecutor(3) as executor:
                seconds = list(
                    executor.map(
                        seconds_until_it_fails,
                        [
                            lambda: session.read_images(blocks[:1], timeout=GIVEN),
                            lambda: session.write_blocks(blocks[1:], IMAGE, timeout=GIVEN),
                            lambda: deleted.delete(timeout=GIVEN),
                        ],
                    )
                )
    assert max(seconds) < GIVEN + WAITED / 2


async def test_a_session_that_is_resumed_late_async(servers: Servers, tmp_path: Path) -> None:
    """So it is with the client for asyncio."""
    server = servers.start().wait_until_ready()
    with between(tmp_path, server.socket) as proxy:
        async with AsyncClient(proxy.target, timeout=DEADLINE_SECONDS) as client:
            session = await client.create_session(60.0, resume_within=60.0)
            deleted = await client.create_session(60.0, resume_within=60.0)
            blocks = await session.allocate_blocks(2)
            await session.read_images(blocks)
            lease, leases = session._lease, session._transport.leases  # noqa: SLF001 - else it cannot be timed
            proxy.hold_answers(WAITED)
            with lease.watched(lambda: proxy.hold_answers(DEADLINE_SECONDS)):
                leases.suspend(leases.live())
                began = time.monotonic()
                failed = await asyncio.gather(
                    session.read_images(blocks[:1], timeout=GIVEN),
                    session.write_blocks(blocks[1:], IMAGE, timeout=GIVEN),
                    deleted.delete(timeout=GIVEN),
                    return_exceptions=True,
                )
                seconds = time.monotonic() - began
    assert all(isinstance(failure, StatepoolError) for failure in failed)
    assert seconds < GIVEN + WAITED / 2
