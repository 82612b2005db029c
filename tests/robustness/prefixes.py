"""Which prefixes a search may find, and which it must: none that nobody committed, and all that were committed."""

from collections.abc import Iterator

from robustness.replay import Hit


class Prefixes:
    """The prefix index of one pool, as its users know it."""

    def __init__(self, *, is_complete: bool, offered: set[bytes] | None = None) -> None:
        """Begins with nothing that must be found.

        Args:
            is_complete: Whether nothing is ever evicted, so that what was committed must be found.
            offered: Prefix hashes that may be found, shared with another index; None: none yet.
        """
        self._is_complete = is_complete
        self._offered = set() if offered is None else offered
        self._certain: dict[bytes, int] = {}

    def offer(self, prefix_hash: bytes) -> None:
        """Takes note that somebody is about to commit a state under a hash: from now on it may be found."""
        self._offered.add(prefix_hash)

    def remains(self) -> "Prefixes":
        """Makes the index of a pool that may have kept any of this one's prefixes, or none."""
        return Prefixes(is_complete=self._is_complete, offered=self._offered)

    def settle(self, prefix_hash: bytes, at_ns: int) -> None:
        """Takes note that a commit was acknowledged, and what it waits for has come: it must be found from now on."""
        self._certain.setdefault(prefix_hash, at_ns)

    def certain(self) -> list[bytes]:
        """Lists what must be found after the run."""
        return list(self._certain) if self._is_complete else []

    def violations(self, hit: Hit, asked_ns: int) -> Iterator[str]:
        """Yields what speaks against a search.

        Args:
            hit: What was searched for and found.
            asked_ns: When it was asked for.
        """
        if hit.found and hit.hashes[hit.found - 1] not in self._offered:
            yield f"a hit of {hit.found} blocks that nobody has committed"
        for depth in range(hit.found + 1, len(hit.hashes) + 1):
            if self._is_complete and self._certain.get(hit.hashes[depth - 1], asked_ns) < asked_ns:
                yield f"a hit of {hit.found} blocks where {depth} were committed: an acknowledged commit is lost"
