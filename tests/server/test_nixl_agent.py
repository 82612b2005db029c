"""Guarantee: an agent that makes room for others reads again from those that it has forgotten."""

import numpy as np
import pytest

from statepool.host import Bytes
from statepool_server import nixl_agent as module
from statepool_server.nixl_agent import NixlAgent, nixl_package
from statepool_server.recency import Ids

pytestmark = pytest.mark.skipif(nixl_package() is None, reason="NIXL is not installed")

BLOCK_BYTES = 64
BLOCKS = 8
RANKS = 2


def _agent(name: str, fill: int) -> tuple[NixlAgent, list[Bytes]]:
    arenas = [np.full(BLOCK_BYTES * BLOCKS, fill + rank, np.uint8) for rank in range(RANKS)]
    return NixlAgent(name, list(enumerate(arenas)), BLOCK_BYTES, "lo"), arenas


@pytest.fixture(scope="module")
def agents() -> list[tuple[NixlAgent, list[Bytes]]]:
    """Makes three agents of this process; the first one reads."""
    return [_agent(f"test/{number}", 10 * number) for number in range(3)]


def _ids(*ids: int) -> Ids:
    return np.array(ids, np.int64)


def _read(reader: NixlAgent, source: NixlAgent, local: Ids, remote: Ids) -> None:
    reader.meet(source.endpoint)
    read = reader.begin(source.endpoint.name, local, remote)
    while not reader.has_ended(read):
        source.progress()
        reader.progress()
    reader.forget(read)


def test_agents_make_room(agents: list[tuple[NixlAgent, list[Bytes]]], monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for one other agent, two are read from in turn, on all ranks."""
    monkeypatch.setattr(module, "MAX_PEERS", 1)
    (reader, memory), *sources = agents
    for _ in range(3):
        for source, theirs in sources:
            _read(reader, source, _ids(1, BLOCKS + 2), _ids(5, BLOCKS + 3))
            assert (memory[0][BLOCK_BYTES : 2 * BLOCK_BYTES] == theirs[0][0]).all()
            assert (memory[1][2 * BLOCK_BYTES : 3 * BLOCK_BYTES] == theirs[1][0]).all()
    assert not memory[0][:BLOCK_BYTES].any()  # nothing else was written
