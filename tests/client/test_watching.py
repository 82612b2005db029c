"""Guarantee: what a server tells of its prefixes is taken in as it was meant, or is told to be unreadable."""

import pytest

from statepool import BlockChanges, DataLossError
from statepool.calls.watching import block_changes
from statepool.disagg.prefixes import KnownPrefixes
from statepool.v1 import pool_pb2 as pb
from statepool.v1 import types_pb2


def _told(
    ids: list[int], hashes: list[bytes], *, kind: int = pb.BlockChanges.KIND_EVENTS, gone: list[int] | None = None
) -> pb.BlockChanges:
    listed = types_pb2.BlockRefs(block_ids=ids, generations=[1] * len(ids))
    return pb.BlockChanges(
        kind=pb.BlockChanges.Kind.ValueType(kind),
        listed=listed,
        prefix_hashes=hashes,
        namespaces=["n"],
        unlisted_block_ids=gone or [],
    )


def _read(*changes: pb.BlockChanges) -> list[BlockChanges]:
    return list(block_changes(pb.WatchBlocksResponse(incarnation=1, changes=changes)))


def _damaged() -> dict[str, pb.BlockChanges]:
    cases = {name: _told([1, 2], [b"a", b"b"]) for name in ("hashes", "generations", "indices", "short", "ids")}
    cases["hashes"].prefix_hashes.append(b"c")
    cases["generations"].listed.generations.append(1)
    cases["indices"].namespace_indices.extend([0, 1])
    cases["short"].namespace_indices.extend([0])
    cases["ids"].listed.block_ids.append(3)
    return cases


@pytest.mark.parametrize("name", _damaged())
def test_columns_that_do_not_fit(name: str) -> None:
    """Columns of different lengths and indices of no namespace are data loss, and nothing is told of them."""
    with pytest.raises(DataLossError, match="cannot be read"):
        _read(_damaged()[name])


def test_kinds_of_newer_servers() -> None:
    """A kind that nobody here knows is passed over, whatever is in it."""
    assert [len(changes.listed) for changes in _read(_told([1], [], kind=99), _told([1], [b"a"]))] == [1]


def test_names_that_move() -> None:
    """A block that is listed again has its new name only, and a name that two have had is lost with the last."""
    known = KnownPrefixes()
    for changes in _read(_told([1, 2], [b"a", b"b"]), _told([1], [b"b"]), _told([], [], gone=[2])):
        known.apply(changes)

    assert known.deepest("n", [b"a"]) == -1
    assert known.deepest("n", [b"b"]) == 0
    for changes in _read(_told([], [], gone=[1, 7])):
        known.apply(changes)
    assert known.deepest("n", [b"b"]) == -1
    assert len(known) == 0
