"""How long to wait before a broken stream is opened again."""

import os

FIRST_BACKOFF_SECONDS = 0.05
"""About how long to wait the first time; doubled each time the stream breaks unanswered."""

MAX_BACKOFF_SECONDS = 1.0
"""About the longest wait."""


class Backoff:
    """Waits that grow until the stream has worked again."""

    def __init__(self) -> None:
        self._broken = 0

    def broke(self) -> float:
        """Notes that the stream broke.

        Returns:
            Seconds to wait, between half and the whole of what is due, so that the clients of a restarted server do not
            come in step.
        """
        wait = min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2.0 ** min(self._broken, 10))
        self._broken += 1
        return wait * (0.5 + os.urandom(1)[0] / 255 / 2)

    def worked(self) -> None:
        """Notes that the stream was answered."""
        self._broken = 0
