"""Guarantee: who could not renew its lease in time stops by itself, before it says another word to the server."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from service.servers import DEADLINE_SECONDS, Server, Servers
from statepool import AsyncClient, AsyncSession, Client, SessionExpiredError, StatepoolError

LESSEE = Path(__file__).with_name("lessee.py")
LOCAL = "no renewal was granted for"
"""How a lease ends that its owner gives up itself."""


def _asked(client: Client, method: str) -> int:
    """Counts the calls of a method that the server has answered, whatever it answered."""
    calls = client.get_server_info().calls
    return sum(count for name, count in calls.items() if f"/{method}:" in name)


def test_a_stopped_process(client: Client, server: Server) -> None:
    """A process that stood still for longer than its lease finds it lost, with its scheduler, and asks for nothing."""
    ttl = 0.5
    process = subprocess.Popen(
        [sys.executable, LESSEE, server.target, str(ttl)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    before = _asked(client, "AllocateBlocks")

    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    time.sleep(3 * ttl)
    process.stdin.write("go\n")
    process.stdin.flush()
    process.send_signal(signal.SIGCONT)
    called, stepped, lost = json.loads(process.stdout.readline())

    assert process.wait(DEADLINE_SECONDS) == 0
    assert called.startswith("SESSION_EXPIRED")
    assert stepped == called
    assert lost == ["SESSION_EXPIRED"]
    assert _asked(client, "AllocateBlocks") == before
    process.communicate()


async def test_a_blocked_loop(client: Client, server: Server) -> None:
    """So does a client for asyncio whose event loop was blocked."""
    lost: list[str] = []

    def on_lost(_session: AsyncSession, error: StatepoolError) -> None:
        lost.append(error.message)

    async with AsyncClient(server.target, timeout=DEADLINE_SECONDS) as aio:
        session = await aio.create_session(0.3, on_lost=on_lost)
        async with session.scheduler() as scheduler:
            before = _asked(client, "AllocateBlocks")
            time.sleep(0.6)  # noqa: ASYNC251 - that is the point

            with pytest.raises(SessionExpiredError, match=LOCAL):
                await session.allocate_blocks(1)
            with pytest.raises(SessionExpiredError, match=LOCAL):
                await scheduler.step()

    assert len(lost) == 1
    assert _asked(client, "AllocateBlocks") == before
    assert aio.stats.lost_sessions == 1


def test_a_silent_server(servers: Servers) -> None:
    """A scheduler that waits for an answer is told as soon as its lease has ended, not when its deadline passes."""
    silent = servers.start().wait_until_ready()
    with silent.client() as client:
        session = client.create_session(0.5)
        with session.scheduler() as scheduler:
            silent.process.send_signal(signal.SIGSTOP)
            started = time.monotonic()

            with pytest.raises(SessionExpiredError, match=LOCAL):
                scheduler.step()

            assert time.monotonic() - started < DEADLINE_SECONDS / 2
            silent.process.send_signal(signal.SIGCONT)
