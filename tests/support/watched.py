"""Folds what a watch yields in the most obvious way: block by block, and only by what the protocol says."""

import threading
from collections.abc import Iterable

from service.servers import until
from statepool import BlockChanges, ChangeKind, Client, WatchCursor
from statepool.errors import StatepoolError

Names = dict[int, tuple[int, str, bytes]]
"""Generation, namespace and hash by block."""


class Watched:
    """What a watcher knows.

    Attributes:
        names: Every block that can be found.
        cursor: Where to go on.
        losses: How often something was lost.
        snapshots: Snapshots that were whole.
    """

    def __init__(self) -> None:
        self.names: Names = {}
        self.cursor: WatchCursor | None = None
        self.losses = self.snapshots = 0
        self._may_go_on = False

    def apply(self, changes: BlockChanges) -> None:
        """Takes changes in, and checks that none is missing."""
        if changes.kind is ChangeKind.LOST:
            self.losses += 1
            self._may_go_on = False
            return
        if changes.kind is ChangeKind.SNAPSHOT:
            if changes.is_first:
                self.names = {}
            self._may_go_on = changes.cursor is not None
            self.snapshots += self._may_go_on
        elif changes.kind is ChangeKind.EVENTS:
            assert self._may_go_on
            assert changes.cursor is not None
            assert self.cursor is not None
            assert changes.cursor.sequence == self.cursor.sequence + 1
        else:
            assert changes.cursor == self.cursor
        self.cursor = changes.cursor
        for block in changes.unlisted_block_ids.tolist():
            self.names.pop(block, None)
        refs = zip(changes.listed.block_ids.tolist(), changes.listed.generations.tolist(), strict=True)
        for (block, generation), namespace, value in zip(refs, changes.namespaces, changes.prefix_hashes, strict=True):
            self.names[block] = generation, namespace, value

    @property
    def plain(self) -> dict[int, tuple[int, bytes]]:
        """Generation and hash of every block that can be found, as `listed` tells them."""
        return {block: (generation, value) for block, (generation, _, value) in list(self.names.items())}

    def fold(self, stream: Iterable[BlockChanges]) -> None:
        """Takes everything in until the stream ends."""
        for changes in stream:
            self.apply(changes)


class Watching(threading.Thread):
    """Watches a server until its client is closed, or the server ends it.

    Attributes:
        known: What it knows.
        error: What the watch was ended with.
    """

    def __init__(self, client: Client, cursor: WatchCursor | None = None, known: Watched | None = None) -> None:
        super().__init__(daemon=True)
        self.known = known or Watched()
        self.error: StatepoolError | None = None
        self._client = client
        self._cursor = cursor
        self.start()

    def run(self) -> None:
        """Watches."""
        try:
            self.known.fold(self._client.watch_blocks(self._cursor))
        except StatepoolError as error:
            self.error = error

    def until_knows(self, names: dict[int, tuple[int, bytes]]) -> None:
        """Waits until it knows exactly these blocks: generation and hash of each."""
        try:
            until(lambda: self.known.plain == names, "the watcher to know everything")
        except AssertionError as error:
            raise AssertionError((names, self.known.plain, self.error)) from error


def listed(client: Client) -> dict[int, tuple[int, bytes]]:
    """Lists the blocks that can be found, with generation and hash, without watching."""
    return {
        block: (generation, value)
        for page in client.list_blocks()
        for block, generation, value in zip(
            page.blocks.block_ids.tolist(), page.blocks.generations.tolist(), page.prefix_hashes, strict=True
        )
        if value
    }
