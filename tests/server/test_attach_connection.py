"""Guarantees of the attach socket's own ends.

The end of a connection and a detachment may come at once, in any order, and nothing is left behind; and a socket that
is broken for good ends its listener, which is supervised, instead of being tried for ever.
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from statepool.framing import FrameReader
from statepool_server.config import ServerConfig
from statepool_server.memory import Memory
from statepool_server.planning import Plan
from statepool_server.pool import Pool, PoolConfig
from statepool_server.service.attach_connection import AttachConnection
from statepool_server.service.attach_listener import AttachListener
from statepool_server.service.attach_peers import DeathLock, Peer
from statepool_server.service.attach_processes import AttachedProcesses
from statepool_server.service.copying import CopyThreads
from statepool_server.service.core import Core


@pytest.fixture
async def core(tmp_path: Path) -> AsyncIterator[Core]:
    """Builds a pool of one block with real memory."""
    plan = Plan.of(ServerConfig(model_config="lfm2", tp_size=8, blocks=2))
    known = plan.description
    memory = Memory.open(
        known.layout,
        tp_ranks=known.tp_ranks[:1],
        devices=known.devices[:1],
        folder=tmp_path,
        engine="host",
        threads=1,
    )
    pool, copies = Pool(PoolConfig(block_count=2, block_tokens=1)), CopyThreads(1, 1)
    yield Core(description=known, limits=plan.limits, pool=pool, memory=memory, copies=copies)
    await copies.close(5.0)
    memory.close()


@pytest.mark.parametrize("turns", range(10))
async def test_cancelled_at_any_moment_of_its_end(core: Core, tmp_path: Path, turns: int) -> None:
    """A connection that is told to end while it is ending does so, and does not wait for the process's death."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    lock, attachment = DeathLock(tmp_path / "lock"), core.pool.attach(0, False)
    held = lock.take()
    connection = AttachConnection(core, attachment, Peer.of(ours), lock, b"")
    connection.connect(ours, FrameReader(), b"")
    running = asyncio.create_task(connection.run())
    for _ in range(3):  # until both of its tasks wait
        await asyncio.sleep(0)

    theirs.close()
    for _ in range(turns):
        await asyncio.sleep(0)
    running.cancel()
    done, _ = await asyncio.wait([running], timeout=5.0)

    os.close(held)
    connection.close()
    assert done


async def test_socket_that_is_broken_for_good(core: Core, tmp_path: Path) -> None:
    """The listener ends with the error."""
    path = tmp_path / "attach.sock"
    listener = AttachListener(path, AttachedProcesses(core, str(path), 1.0, tmp_path), 1.0)
    reading, writing = os.pipe()
    os.dup2(reading, listener._socket.fileno())  # noqa: SLF001 — no good process does this, so there is no method
    os.close(reading)
    os.close(writing)

    with pytest.raises(OSError, match="non-socket"):
        await asyncio.wait_for(listener.run(), 5.0)

    await listener.close()
