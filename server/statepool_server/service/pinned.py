"""Memory work that a call does piece by piece, while it holds the pins of all of it."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from functools import partial
from itertools import islice
from types import TracebackType
from typing import Any, Self, TypeVar

from statepool_server.service.copying import Chore, CopyThreads
from statepool_server.service.core import Core

T = TypeVar("T")

AT_A_TIME = 4
"""Reads of a stream that a thread is given at once: to hand over less than a few MiB costs as much as to read them."""


class PinnedWork:
    """Ends work when its call has ended and the last thread is done with it; it has failed where the call has."""

    def __init__(self, core: Core, number: int) -> None:
        """Takes over the end of work.

        Args:
            core: What the services share.
            number: The work, begun with ``is_stream``.
        """
        self._core = core
        self._number = number
        self._piece: asyncio.Future[Any] | None = None

    async def __aenter__(self) -> Self:
        return self

    def begin(self, piece: Callable[[], T], chore: Chore, nbytes: int) -> "asyncio.Future[T]":
        """Begins a piece on a copy thread; the one before must be done.

        Args:
            piece: What to do; blocking.
            chore: What kind of work it is.
            nbytes: Bytes that it moves.

        Raises:
            OverloadedError: As much is queued as may be.
        """
        self._core.copies.check_room()
        future = self._core.copies.submit(piece, chore, nbytes)
        self._piece = future
        return future

    async def room(self, seconds: float) -> None:
        """Waits until a piece can begin; see `CopyThreads.room`."""
        await self._core.copies.room(seconds)

    async def wait(self, piece: "asyncio.Future[T]") -> T:
        """Waits for the end of a piece; see `CopyThreads.wait`."""
        return await self._core.copies.wait(piece)

    def hold(self, end: "asyncio.Future[Any]") -> None:
        """Waits for something that writes the blocks on its own before it ends the work; see `begin`.

        Args:
            end: Is done when that writes no more.
        """
        end.add_done_callback(lambda end: end.cancelled() or end.exception())  # nobody may be left to look at it
        self._piece = end

    async def run(self, piece: Callable[[], T], chore: Chore, nbytes: int) -> T:
        """Runs a piece on a copy thread; see `begin`.

        Raises:
            OverloadedError: As much is queued as may be.
        """
        return await self.wait(self.begin(piece, chore, nbytes))

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._piece is not None and not self._piece.done():
            self._piece.add_done_callback(lambda _: self._end(exc_type is None))
        else:
            self._end(exc_type is None)

    def _end(self, succeeded: bool) -> None:
        if self._core.works.is_under_way(self._number):  # an act may have ended it
            self._core.works.end(self._number, succeeded=succeeded)


async def ahead(copies: CopyThreads, reads: Iterator[tuple[Callable[[], T], int]]) -> AsyncGenerator[T, None]:
    """Runs reads on copy threads, some at a time, while what was read before is sent.

    Args:
        copies: The threads.
        reads: What to do, and how many bytes it reads.

    Raises:
        OverloadedError: As much is queued as may be.
    """
    coming: asyncio.Future[list[T]] | None = None
    while batch := list(islice(reads, 1 if coming is None else AT_A_TIME)):
        done = [] if coming is None else await copies.wait(coming)
        copies.check_room()
        coming = copies.submit(partial(_all, [read for read, _ in batch]), Chore.READ, sum(size for _, size in batch))
        for result in done:
            yield result
    for result in [] if coming is None else await copies.wait(coming):
        yield result


def _all(reads: list[Callable[[], T]]) -> list[T]:
    return [read() for read in reads]
