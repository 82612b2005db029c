"""A directory of the prefixes of several servers, for asyncio."""

# ruff: noqa: ASYNC109 — the deadline is a parameter as it is of every method of the clients

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import aclosing
from types import TracebackType
from typing import Self

from statepool.aio.client import AsyncClient
from statepool.disagg.prefixes import Directory, Followed
from statepool.errors import DeadlineExceededError, StatepoolError


class AsyncPrefixDirectory(Directory):
    """Follows servers, each from a task and over a connection of its own; see `PrefixDirectory`.

    To be made, changed and closed on one event loop; `lookup` may be called from anywhere.
    """

    def __init__(self, targets: Iterable[str] = (), *, connect: Callable[[str], AsyncClient] = AsyncClient) -> None:
        """Begins to follow; arguments as `PrefixDirectory`.

        Raises:
            RuntimeError: No event loop runs.
        """
        super().__init__()
        self._connect = connect
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        clients = {target: connect(target) for target in targets}  # nobody is followed where one of them cannot be
        for target, client in clients.items():
            self._begin(target, client)

    def add(self, target: str) -> None:
        """Follows another server; see `PrefixDirectory.add`."""
        if target not in self._tasks:
            self._begin(target, self._connect(target))

    async def remove(self, target: str) -> None:
        """Stops following a server, and forgets what it has told; see `PrefixDirectory.remove`."""
        task = self._tasks.pop(target, None)
        if task is not None:
            del self._followed[target]
            task.cancel()
            await asyncio.wait([task])
            self._tell()

    async def wait_until_current(self, timeout: float) -> None:
        """Waits until everything that the servers have is known; see `PrefixDirectory.wait_until_current`."""
        try:
            async with asyncio.timeout(timeout):
                while not self.is_current:
                    await self._changed.wait()
        except TimeoutError:
            raise DeadlineExceededError(f"not current after {timeout:g} s: {self._lacking()}") from None

    async def close(self) -> None:
        """Stops following and forgets what was told; see `PrefixDirectory.close`."""
        for target in list(self._tasks):
            await self.remove(target)

    def _begin(self, target: str, client: AsyncClient) -> None:
        self._followed[target] = followed = Followed(target)
        following = self._follow(followed, client)
        self._tasks[target] = asyncio.create_task(following, name=f"statepool directory of {target}")

    async def _follow(self, followed: Followed, client: AsyncClient) -> None:
        async with client:
            while True:
                try:
                    await self._watch(followed, client)
                except StatepoolError as error:
                    await asyncio.sleep(followed.broke(error))
                except Exception as error:
                    followed.died(error)
                    raise

    async def _watch(self, followed: Followed, client: AsyncClient) -> None:
        async with aclosing(client.watch_blocks(followed.cursor)) as watch:
            async for changes in watch:
                was_current = followed.is_current
                followed.heard(changes)
                if followed.is_current and not was_current:
                    self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
