"""Guarantee: an agent reads again from those that it has forgotten, and keeps nothing of what has failed."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from statepool.host import Bytes
from statepool_server import nixl_agent as module
from statepool_server.nixl_agent import BadDescriptorError, NixlAgent, NixlError, PeerGoneError, nixl_package
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


def test_an_agent_that_cannot_be_met(agents: list[tuple[NixlAgent, list[Bytes]]]) -> None:
    """One that tells of memory which is not its own, or under another's name, is forgotten; one that is known stays."""
    (reader, _), (known, _), (liar, _) = agents
    reader.part(liar.endpoint.name)
    reader.meet(known.endpoint)
    regions = [replace(region, block_count=2 * BLOCKS) for region in liar.endpoint.regions]
    for endpoint in (replace(liar.endpoint, regions=tuple(regions)), replace(liar.endpoint, name="other")):
        with pytest.raises(BadDescriptorError):
            reader.meet(endpoint)
        assert not _knows(reader, liar)
    with pytest.raises(BadDescriptorError):
        reader.meet(replace(known.endpoint, name="other"))
    assert _knows(reader, known)
    _read(reader, known, _ids(1), _ids(1))
    _read(reader, liar, _ids(1), _ids(1))


@pytest.mark.parametrize(("failure", "kind"), [("ERR", PeerGoneError), (RuntimeError("no"), BadDescriptorError)])
def test_a_read_that_cannot_begin(
    agents: list[tuple[NixlAgent, list[Bytes]]],
    monkeypatch: pytest.MonkeyPatch,
    failure: str | Exception,
    kind: type[NixlError],
) -> None:
    """What was prepared for it is given back at once, and its source can be forgotten."""
    (reader, _), (source, _), _ = agents
    reader.meet(source.endpoint)
    handles: list[Any] = []

    def transfer(handle: Any) -> str:
        handles.append(handle)
        if isinstance(failure, Exception):
            raise failure
        return failure

    with monkeypatch.context() as patch:
        patch.setattr(reader._agent, "transfer", transfer)  # noqa: SLF001 — what NIXL says cannot be had at will
        with pytest.raises(kind):
            reader.begin(source.endpoint.name, _ids(1), _ids(1))

    assert [handle._released for handle in handles] == [True]  # noqa: SLF001
    reader.part(source.endpoint.name)
    assert not _knows(reader, source)
    _read(reader, source, _ids(1), _ids(1))


def _knows(reader: NixlAgent, other: NixlAgent) -> bool:
    return bool(reader._agent.check_remote_metadata(other.endpoint.name))  # noqa: SLF001
