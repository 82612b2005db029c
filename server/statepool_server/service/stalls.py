"""Peers of streams that stand still: cut off in bounded time.

A write of grpc.aio waits for the flow control of its stream, so a reader that takes nothing costs the window of its
stream and one message, but for ever; so every wait for a peer that has to move is bounded here.
"""

import asyncio
import time
from collections.abc import Awaitable
from typing import TypeVar

from statepool.aio.alarm import Alarm
from statepool.errors import StreamStalledError

T = TypeVar("T")


class Stalls:
    """Bounds how long a peer may stand still."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def moving(self, step: Awaitable[T], who: str, alarm: Alarm | None = None) -> T:
        """Awaits a read or a write of a stream.

        Args:
            step: The read or write; cancelled when it takes too long.
            who: Who has to move.
            alarm: The alarm of a stream with many of them, one at a time; None: a timer is set for this one.

        Raises:
            StreamStalledError: They stood still too long.
        """
        try:
            if alarm is not None:
                return await alarm.within(time.monotonic() + self._seconds, step)
            async with asyncio.timeout(self._seconds):
                return await step
        except TimeoutError:
            raise StreamStalledError(f"{who} stood still for {self._seconds:g} s") from None
