"""Guarantee: attaching works between containers that share only the folder of the server's socket.

The server has process numbers and mounts of its own, as in a container: it cannot see the worker's process, and the
worker cannot see the arena's file.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from attach.test_deaths import all_free, kill, quarantined, scheduler
from attach.workers import Worker
from service.servers import DEADLINE_SECONDS, Server, fast_folder, until
from statepool import Client

APART = ("unshare", "--pid", "--mount", "--fork", "--kill-child", "sh", "-c")
"""Runs a script with process numbers and mounts of its own."""


def _may_separate() -> bool:
    if shutil.which("unshare") is None or os.geteuid() != 0:
        return False
    return subprocess.run([*APART, "mount -t tmpfs none /mnt"], capture_output=True, check=False).returncode == 0


pytestmark = pytest.mark.skipif(not _may_separate(), reason="makes namespaces: needs root and unshare")


@pytest.fixture
def server() -> Iterator[Server]:
    """Runs a server whose arenas and journal lie on a file system that nobody else sees."""
    with fast_folder() as folder:
        (folder / "state").mkdir(mode=0o700)
        script = f'mount -t tmpfs -o mode=700 none {folder}/state && exec "$@"'
        contained = Server(folder, under=(*APART, script, "sh"))
        yield contained.wait_until_ready()
        with contained.client() as client:
            client.drain(0.0, stop=True)
        assert contained.process.wait(DEADLINE_SECONDS) == 0, contained.log


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """Connects to the server."""
    with server.client() as client:
        yield client


def test_a_worker_elsewhere(server: Server, client: Client) -> None:
    """It has the memory, answers its fences, and is proven dead by the lock that it held."""
    assert list(server.state_dir.iterdir()) == []
    with client.create_session(60.0) as session:
        block = session.allocate_blocks(1)
        worker = Worker(server)
        assert worker.ask("begin", session.session_id, session.epoch) == ""
        worker.ask("fill", int(block.block_ids[0]), 7)
        assert next(iter(session.read_blocks(block))).data[0] == 7

    assert quarantined(client) == 1  # the pass goes on
    worker.end()
    until(lambda: all_free(client), "the death of a process that cannot be seen to be proven")


def test_both_at_once(server: Server, client: Client) -> None:
    """With scheduler and worker dead at once nothing is left of either."""
    process, (session_id, epoch, _) = scheduler(server)
    worker = Worker(server)
    assert worker.ask("begin", session_id, epoch) == ""

    kill(process)
    worker.end()

    until(lambda: all_free(client), "the lease to end, and the worker's death to be proven")
