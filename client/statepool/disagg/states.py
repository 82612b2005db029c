"""What moves, and what has been moved."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from statepool.calls.images import Images
from statepool.convert import PoolStates, plan_conversion
from statepool.descriptions import Pool
from statepool.errors import DeadlineExceededError, PeerLostError, PeerUntrustedError
from statepool.refs import BlockRefs
from statepool.sequences import ImportedState

SPARE_SECONDS = 5.0
"""How long a lease outlasts the deadline of its move: a reader that is late finds out by itself, not by torn bytes."""

RELEASE_SECONDS = 1.0
"""Deadline of giving a lease or blocks back when a move has failed; they end by themselves, or with their session."""

NO_WAY = (PeerUntrustedError, PeerLostError)
"""Errors after which the bytes may still be relayed: the servers cannot reach each other."""


class Via(StrEnum):
    """Who carries the bytes."""

    AUTO = "auto"
    """The destination's server, and where it cannot reach the source, this process."""
    SERVER = "server"
    """The destination's server, which pulls from the source."""
    RELAY = "relay"
    """This process, which reads from the one and writes to the other."""


class PrefixNotFoundError(LookupError):
    """The source knows none of the prefixes that were to move."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """Names a state by what it has seen: the deepest of these prefixes that the source has."""

    hashes: Sequence[bytes]
    """From the shortest prefix to the longest, as `statepool.prefix_hashes` makes them."""
    namespace: str = ""
    """Where to look."""


@dataclass(frozen=True, slots=True)
class Moved:
    """States in their new place."""

    blocks: BlockRefs
    """Blocks of the destination's session, uncommitted, one reference each."""
    num_tokens: int
    """Tokens that the state has seen, of a sequence or a prefix; 0 for blocks."""
    prefix_hash: bytes
    """Hash that was found, of a prefix; empty for others."""
    via: Via
    """Who has carried the bytes: `Via.SERVER` or `Via.RELAY`."""

    @property
    def imported(self) -> ImportedState:
        """With which an `Admission` begins a sequence on the state.

        Raises:
            ValueError: It is not one state whose tokens are known.
        """
        if len(self.blocks) != 1 or not self.num_tokens:
            raise ValueError(
                f"{len(self.blocks)} blocks after {self.num_tokens} tokens are not the state of a sequence"
            )
        return ImportedState(self.blocks, self.num_tokens)


class Deadline:
    """A moment by which a move must be done."""

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds until then.

        Raises:
            DeadlineExceededError: It has passed.
        """
        left = self._at - time.monotonic()
        if left <= 0:
            raise DeadlineExceededError("the move took longer than its deadline")
        return left


class Relay:
    """Plans how images are read from one pool and written to another, a block at a time.

    Attributes:
        source_ranks: Ranks of the source whose images are needed, ascending.
    """

    def __init__(self, here: Pool, there: Pool) -> None:
        """Plans.

        Args:
            here: The pool of the source.
            there: The pool of the destination.

        Raises:
            LayoutMismatchError: The states cannot be converted.
        """
        self._conversion = conversion = plan_conversion(PoolStates.of(here), PoolStates.of(there))
        self._tp_ranks = there.tp_ranks
        self._image_bytes = there.block_bytes
        self.source_ranks = sorted({rank for target in there.tp_ranks for rank in conversion.source_ranks(target)})

    def convert(self, pulled: dict[int, bytes]) -> Iterator[tuple[int, Images]]:
        """Makes images of the destination of one block's images of the source.

        Args:
            pulled: The images, by rank.

        Yields:
            Rank index at the destination and image, ``[1, image bytes]``.
        """
        images = {rank: np.frombuffer(data, np.uint8) for rank, data in pulled.items()}
        for rank_index, target in enumerate(self._tp_ranks):
            made = np.zeros((1, self._image_bytes), np.uint8)
            for rank in self._conversion.source_ranks(target):
                self._conversion.place(rank, images[rank], target, made[0])
            yield rank_index, made
