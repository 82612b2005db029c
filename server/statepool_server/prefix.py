"""The prefix index: which committed block holds the state after which prefix."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from statepool_server.blocks import Ids


class PrefixIndex:
    """Hashes to blocks, apart for each namespace; a block has at most one hash."""

    def __init__(self, block_count: int) -> None:
        self._blocks: dict[str, dict[bytes, int]] = {}
        self._namespaces = np.full(block_count, None, np.object_)
        self._hashes = np.full(block_count, None, np.object_)

    def __len__(self) -> int:
        return sum(map(len, self._blocks.values()))

    def find_all(self, namespace: str, prefix_hashes: Iterable[bytes]) -> list[int]:
        """Finds the blocks of the hashes that are known, in order, each block once."""
        known = self._blocks.get(namespace, {})
        return list(dict.fromkeys(known[value] for value in prefix_hashes if value in known))

    def deepest(self, namespace: str, prefix_hashes: Sequence[bytes]) -> tuple[int, int] | None:
        """Finds the last hash that is known.

        Returns:
            Its row and its block, or None.
        """
        known = self._blocks.get(namespace)
        if known:
            for row in range(len(prefix_hashes) - 1, -1, -1):
                block = known.get(prefix_hashes[row])
                if block is not None:
                    return row, block
        return None

    def name_of(self, block_id: int) -> tuple[str, bytes] | None:
        """Tells the namespace and the hash of a block."""
        value = self._hashes[block_id]
        return None if value is None else (self._namespaces[block_id], value)

    def insert(self, namespace: str, prefix_hashes: Sequence[bytes], block_ids: Ids) -> Ids:
        """Adds hashes, unless they are known.

        Args:
            namespace: Where.
            prefix_hashes: The hashes; one that occurs twice goes to its first block.
            block_ids: A block for each, ``[n]``.

        Returns:
            For each hash, the block that holds it now, ``[n]``.
        """
        if not prefix_hashes:
            return block_ids
        known = self._blocks.setdefault(namespace, {})
        holders = np.array(list(map(known.setdefault, prefix_hashes, block_ids.tolist())), np.int64)
        own = holders == block_ids
        mine = block_ids[own]
        self._hashes[mine] = np.array(prefix_hashes, np.object_)[own]
        self._namespaces[mine] = namespace
        return holders

    def remove(self, block_ids: Ids) -> None:
        """Takes blocks out; each must be in."""
        names, values = self._namespaces[block_ids].tolist(), self._hashes[block_ids].tolist()
        self._namespaces[block_ids] = self._hashes[block_ids] = None
        if names.count(names[0] if names else "") == len(names):
            self._remove_all(names[:1], values)
        else:
            for name, value in zip(names, values, strict=True):
                self._remove_all([name], [value])

    def items(self) -> Iterator[tuple[str, bytes, int]]:
        """Lists everything, in the order of block ids."""
        for block in np.flatnonzero(self._hashes != None).tolist():  # noqa: E711 - elementwise
            yield self._namespaces[block], self._hashes[block], block

    def _remove_all(self, namespaces: Iterable[str], prefix_hashes: Iterable[bytes]) -> None:
        for namespace in namespaces:
            known = self._blocks[namespace]
            deque(map(known.__delitem__, prefix_hashes), maxlen=0)
            if not known:
                del self._blocks[namespace]
