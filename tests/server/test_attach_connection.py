"""Guarantee: the end of a connection and a detachment may come at once, in any order, and nothing is left behind."""

import asyncio
import socket
import tempfile
from pathlib import Path

import pytest

from statepool.framing import FrameReader
from statepool_server.app import Plan, limits_of
from statepool_server.config import ServerConfig
from statepool_server.memory import Memory
from statepool_server.pool import Pool, PoolConfig
from statepool_server.service.attach_connection import AttachConnection
from statepool_server.service.attach_peers import DeathLock, Peer
from statepool_server.service.copying import CopyThreads
from statepool_server.service.core import Core


@pytest.mark.parametrize("turns", range(10))
async def test_cancelled_at_any_moment_of_its_end(turns: int) -> None:
    """A connection that is told to end while it is ending does so, and does not wait for the process's death."""
    config = ServerConfig(model_config="lfm2", tp_size=8, blocks=2)
    plan = Plan.of(config)
    with tempfile.TemporaryDirectory() as folder:
        known = plan.description
        memory = Memory.open(
            known.layout,
            tp_ranks=known.tp_ranks[:1],
            devices=known.devices[:1],
            state_dir=Path(folder) / "state",
            engine="host",
            threads=1,
        )
        pool, copies = Pool(PoolConfig(block_count=2, block_tokens=1)), CopyThreads(1, 1)
        core = Core(description=known, limits=limits_of(config), pool=pool, memory=memory, copies=copies)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        lock, attachment = DeathLock(), pool.attach(0, False)
        connection = AttachConnection(core, attachment, ours, Peer.of(ours), lock, b"", b"")
        running = asyncio.create_task(connection.run(FrameReader()))
        for _ in range(3):  # until both of its tasks wait
            await asyncio.sleep(0)

        theirs.close()
        for _ in range(turns):
            await asyncio.sleep(0)
        running.cancel()
        done, _ = await asyncio.wait([running], timeout=5.0)

        lock.handed_over()
        connection.close()
        await copies.close()
        memory.close()
    assert done
