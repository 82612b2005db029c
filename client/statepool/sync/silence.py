"""Deadlines of a blocking read that is made again and again, where gRPC knows only one for the whole stream."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Silence:
    """Cancels a stream that says nothing for too long, from a thread of its own."""

    def __init__(self, seconds: float, cancel: Callable[[], object]) -> None:
        """Begins to watch; `end` must follow.

        Args:
            seconds: Timeout of a read; a stalled one is cancelled after one to two times this.
            cancel: Ends the stream.
        """
        self.is_too_long = False
        self._seconds = seconds
        self._cancel = cancel
        self._deadline = math.inf
        self._ended = threading.Event()
        threading.Thread(target=self._watch, daemon=True, name="statepool silence").start()

    @contextmanager
    def broken(self) -> Iterator[None]:
        """Bounds the reads that are made inside."""
        self._deadline = time.monotonic() + self._seconds
        try:
            yield
        finally:
            self._deadline = math.inf

    def end(self) -> None:
        """Ends the thread."""
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(min(self._seconds, max(0.0, self._deadline - time.monotonic()))):
            if time.monotonic() >= self._deadline:
                self.is_too_long = True
                self._cancel()
                return
