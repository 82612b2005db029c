"""Streams that others may end with a status, also while they wait for their clients."""

import asyncio
from types import TracebackType
from typing import Self

from statepool.errors import StatepoolError


class Endable:
    """What the present task handles, within ``with``: to `end` it cancels the task, and the error goes out.

    Attributes:
        error: What it was ended with; None: it goes on.
    """

    def __init__(self) -> None:
        self.error: StatepoolError | None = None
        self._handler = asyncio.current_task()

    def end(self, error: StatepoolError) -> None:
        """Ends it; only the first error counts."""
        if self.error is None and self._handler is not None:
            self.error = error
            self._handler.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Makes the error of the cancellation.

        Raises:
            StatepoolError: What it was ended with.
        """
        if self.error is not None and isinstance(exc, asyncio.CancelledError):
            raise self.error from None
