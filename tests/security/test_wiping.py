"""Guarantee: a tenant that is handed a block finds nothing in it that was another's, whatever it asks for."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from security.conftest import access_file, token_of
from service.servers import BLOCK_TOKENS, IMAGE_BYTES, Server, Servers
from statepool import Admission, BlockRefs, Client, Schedules, Session
from statepool.sequences import Execution

LONG = 60.0
BLOCKS = 4
"""As many as the server has, and as a sequence with three drafts takes."""
SECRET = b"acme" * (BLOCKS * IMAGE_BYTES // 4)

Way = Callable[[Session], BlockRefs]


def allocated(session: Session) -> BlockRefs:
    """Allocates blocks, and asks that they be left as they are."""
    return session.allocate_blocks(BLOCKS, zero=False)


def scheduled(execution: Execution) -> Way:
    """Schedules a sequence whose table takes all blocks; what is not zeroed for it is scratch for drafts."""

    def schedule(session: Session) -> BlockRefs:
        with session.scheduler(execution=execution) as scheduler:
            admission = Admission(1, BLOCK_TOKENS, namespace="globex/model")
            return scheduler.step(admit=[admission], schedule=Schedules([1], [BLOCK_TOKENS])).tables.blocks(0)

    return schedule


WAYS: dict[str, Way] = {
    "allocated": allocated,
    "scheduled": scheduled(Execution.SERVER),
    "scheduled, copies by the worker": scheduled(Execution.WORKER),
}


@pytest.fixture
def server(servers: Servers, tmp_path: Path) -> Server:
    """Starts a server with few blocks, whose speculative columns are as many as there may be."""
    flags = ("--blocks", str(BLOCKS + 1), "--num-spec", "3", "--access", str(access_file(tmp_path)))
    return servers.start(*flags).wait_until_ready()


def states_of(server: Server, tenant: str, way: Way, data: bytes = b"") -> tuple[BlockRefs, bytes]:
    """Gets blocks, reads what is in them, and writes over it."""
    with Client(server.target, token=token_of(tenant)) as client, client.create_session(LONG) as session:
        blocks = way(session)
        found = b"".join(bytes(chunk.data) for chunk in session.read_blocks(blocks))
        if data:
            session.write_blocks(blocks, data)
        return blocks, found


@pytest.mark.parametrize("way", WAYS)
def test_blocks_that_were_anothers(server: Server, way: str) -> None:
    """They are zeroed before the tenant has them."""
    before, _ = states_of(server, "acme", allocated, SECRET)

    after, found = states_of(server, "globex", WAYS[way])

    assert sorted(after.block_ids) == sorted(before.block_ids)
    assert found == bytes(len(found))
    assert len(found) == len(SECRET)


def test_blocks_that_were_ones_own(server: Server) -> None:
    """They are left as they are where the tenant asks for that."""
    states_of(server, "acme", allocated, SECRET)

    _, found = states_of(server, "acme", allocated)

    assert found.replace(b"\0", b"").startswith(SECRET[:256])  # bytes between states are no one's


def test_after_a_crash(server: Server) -> None:
    """The next server knows whose they were."""
    states_of(server, "acme", allocated, SECRET)
    server.kill()
    server.start()
    server.wait_until_ready()

    assert np.count_nonzero(np.frombuffer(states_of(server, "globex", allocated)[1], np.uint8)) == 0
