"""Guarantee: what a server takes under load it gives back: descriptors, threads, blocks, and memory within reason."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from robustness.soak import FLAGS, Soak
from service.servers import Server, fast_folder

ROUNDS, ROUND_SECONDS = 3, 4.0
MOST_GROWTH_MIB = 48.0
"""Far more than the allocator keeps, and far less than a leak of so many operations would be."""


@pytest.fixture
def server() -> Iterator[Server]:
    """Starts a server for the soak."""
    with fast_folder() as folder:
        server = Server(Path(folder) / "server", *FLAGS).wait_until_ready()
        yield server
        server.stop()


def test_soak(server: Server) -> None:
    """Rounds of clients, sequences, blocks and attachments come and go; `make soak` has hours of them."""
    soak = Soak(server)
    soak.load(1, ROUND_SECONDS)
    before = soak.rest()

    soak.load(ROUNDS, ROUND_SECONDS)

    after = soak.rest()
    soak.close()
    assert after.held == before.held
    assert after.private_mib - before.private_mib < MOST_GROWTH_MIB
    assert (soak.errors, soak.mismatches) == (0, [])
    assert soak.operations > 0
    assert max(sample.descriptors for sample in soak.samples) > before.descriptors
