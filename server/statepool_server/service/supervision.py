"""What a server cannot do without: the death of any background part is logged, listed, and told by health."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

_log = structlog.get_logger("statepool.supervision")


class Part:
    """One of the things that a server does beside answering calls.

    Attributes:
        name: Its name.
        loss: What the server no longer does when the part has died.
        failure: What ended it, in one line; empty while it works.
    """

    def __init__(self, name: str, loss: str, tell: Callable[[], None]) -> None:
        """Makes a part that works.

        Args:
            name: Its name.
            loss: What the server no longer does when the part has died.
            tell: Called at its death, on the event loop.
        """
        self.name = name
        self.loss = loss
        self.failure = ""
        self._tell = tell
        self._loop = asyncio.get_running_loop()

    def failed(self, error: BaseException) -> None:
        """Notes the death of the part, once; may be called from any thread."""
        self._loop.call_soon_threadsafe(self._failed, error)

    def _failed(self, error: BaseException) -> None:
        if not self.failure:
            self.failure = " ".join(f"{type(error).__name__}: {error}".split())
            self._tell()  # first: a log that cannot be written must not keep it from being told
            _log.error(f"background work died: {self.loss}", part=self.name, exc_info=error)


class Supervisor:
    """Runs the parts that are coroutines, and listens to those that are threads (`part`).

    Attributes:
        parts: All parts, in the order in which they were begun.
    """

    def __init__(self, on_death: Callable[[], Awaitable[None]]) -> None:
        """Begins without a part.

        Args:
            on_death: Tells the world.
        """
        self.parts: list[Part] = []
        self._on_death = on_death
        self._tasks: set[asyncio.Future[None]] = set()
        self._is_closing = False

    def part(self, name: str, loss: str) -> Part:
        """Lists a part whose owner tells of its death by `Part.failed`."""
        part = Part(name, loss, self._tell)
        self.parts.append(part)
        return part

    def run(self, name: str, loss: str, work: Coroutine[Any, Any, None]) -> Part:
        """Runs a part, which is not to end before it is cancelled.

        Args:
            name: Its name.
            loss: What the server no longer does when it has died.
            work: What it does.
        """
        part = self.part(name, loss)
        task = asyncio.create_task(work, name=f"statepool-{name}")
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._ended(part, task))
        return part

    async def close(self) -> None:
        """Ends the parts that it runs."""
        self._is_closing = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, part: Part, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not self._is_closing:
            error = asyncio.CancelledError("cancelled") if task.cancelled() else task.exception()
            part.failed(error or RuntimeError("ended by itself"))

    def _tell(self) -> None:
        telling = asyncio.ensure_future(self._on_death())
        self._tasks.add(telling)
        telling.add_done_callback(self._tasks.discard)
