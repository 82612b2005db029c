"""Tokens that each admit one connection of a process to the arena of a rank."""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from statepool.errors import PeerUntrustedError

TOKEN_BYTES = 16
"""128 bits: nobody guesses one."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token admits to."""

    rank_index: int
    """The rank."""
    read_only: bool
    """Whether the process only reads."""


class Tokens:
    """Tokens that were given out and are neither used up nor too old; they are as few as attachments may be."""

    def __init__(self, ttl_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Begins without tokens.

        Args:
            ttl_seconds: How long a token is good.
            clock: Tells the time in seconds.
        """
        self.ttl_seconds = ttl_seconds
        self._clock = clock
        self._grants: dict[bytes, tuple[float, Grant]] = {}  # oldest first

    def __len__(self) -> int:
        self._forget_old()
        return len(self._grants)

    def issue(self, grant: Grant) -> bytes:
        """Makes a token."""
        token = secrets.token_bytes(TOKEN_BYTES)
        self._grants[token] = self._clock() + self.ttl_seconds, grant
        return token

    def redeem(self, token: bytes) -> Grant:
        """Uses a token up.

        Raises:
            PeerUntrustedError: It was never given out, is used up, or too old.
        """
        self._forget_old()
        _, grant = self._grants.pop(token, (0.0, None))
        if grant is None:
            raise PeerUntrustedError(f"the token was never given out, is used up, or older than {self.ttl_seconds:g} s")
        return grant

    def _forget_old(self) -> None:
        now = self._clock()
        self._grants = {token: entry for token, entry in self._grants.items() if entry[0] > now}
