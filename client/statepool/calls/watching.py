"""The stream of WatchBlocks."""

from collections.abc import Iterator

import numpy as np
from google.protobuf.message import DecodeError

from statepool.errors import DataLossError
from statepool.v1 import pool_pb2 as pb
from statepool.watching import BlockChanges, ChangeKind, WatchCursor
from statepool.wire import refs_from_wire

_KINDS = frozenset(kind.value for kind in ChangeKind)


def watch_blocks(cursor: WatchCursor | None) -> pb.WatchBlocksRequest:
    """Builds what opens the stream."""
    if cursor is None:
        return pb.WatchBlocksRequest()
    return pb.WatchBlocksRequest(cursor=pb.WatchCursor(incarnation=cursor.incarnation, sequence=cursor.sequence))


def block_changes(response: pb.WatchBlocksResponse) -> Iterator[BlockChanges]:
    """Reads a message; kinds that a newer server may tell are passed over.

    Raises:
        DataLossError: Its columns do not fit together, so that what the server has told is not known.
    """
    for changes in response.changes:
        if changes.kind in _KINDS:
            try:
                told = _changes(response.incarnation, changes)
            except (ValueError, IndexError, DecodeError) as error:
                raise DataLossError(f"the server has told changes that cannot be read: {error}") from error
            yield told


def _changes(incarnation: int, changes: pb.BlockChanges) -> BlockChanges:
    kind = ChangeKind(changes.kind)
    is_whole = changes.is_last if kind is ChangeKind.SNAPSHOT else kind is not ChangeKind.LOST
    listed, names = refs_from_wire(changes.listed), _namespaces(changes)
    if not len(listed) == len(changes.prefix_hashes) == len(names):
        raise ValueError(f"{len(listed)} blocks, {len(changes.prefix_hashes)} hashes, {len(names)} namespaces")
    return BlockChanges(
        kind=kind,
        cursor=WatchCursor(incarnation, changes.sequence) if is_whole else None,
        is_first=changes.is_first,
        unlisted_block_ids=np.array(changes.unlisted_block_ids, np.int64),
        listed=listed,
        prefix_hashes=tuple(changes.prefix_hashes),
        namespaces=names,
    )


def _namespaces(changes: pb.BlockChanges) -> tuple[str, ...]:
    names = tuple(changes.namespaces)
    if changes.namespace_indices:
        return tuple(map(names.__getitem__, changes.namespace_indices))
    return names * len(changes.prefix_hashes)
