"""The one thread that makes NIXL calls, and what the event loop asks of it."""

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from statepool.transfers import NixlEndpoint
from statepool_server import failpoints
from statepool_server.nixl_agent import NixlAgent, NixlError, Read
from statepool_server.recency import Ids

T = TypeVar("T")

HOT_SECONDS = 50e-6
"""Pause between two looks while something is read from here or from there."""
IDLE_SECONDS = 50e-3
"""Pause otherwise: nobody waits, since who connects does so to read what is lent."""

_IMMORTAL: list[NixlAgent] = []
"""Agents end with the process: what they have begun may land until then, and their arenas must be there."""


class NixlThread:
    """Owns an agent.

    A read cannot be cancelled: what its peer sends lands whenever it comes. So its future is done when nothing can land
    any more, and until then its blocks are nobody's, whatever has become of the caller.
    """

    def __init__(self, open_agent: Callable[[], NixlAgent]) -> None:
        """Begins without a thread.

        Args:
            open_agent: Makes the agent; called on the thread.
        """
        self._open_agent = open_agent
        self._opened: Future[NixlEndpoint] = Future()
        self._ended: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="statepool-nixl", daemon=True)
        self._commands: deque[Callable[[NixlAgent], None]] = deque()
        self._reads: list[tuple[Read, Callable[[NixlError | None], None]]] = []
        self._lent: dict[int, float] = {}  # replaced and never changed: the thread looks at it
        self._wake = threading.Event()
        self._is_closed = False

    @property
    def is_alive(self) -> bool:
        """Whether it still does what it is asked for; once it has died, it never does again."""
        return self._thread.is_alive()

    @property
    def reads(self) -> int:
        """Reads whose bytes may still land."""
        return len(self._reads)

    @property
    def endpoint(self) -> NixlEndpoint:
        """How others reach the agent, once it was started."""
        return self._opened.result(0)

    async def start(self) -> None:
        """Starts the thread and waits for the agent.

        Raises:
            ValueError: There can be no agent.
        """
        self._thread.start()
        await asyncio.wrap_future(self._opened)

    async def run(self) -> None:
        """Lasts as long as the thread.

        Raises:
            Exception: What the thread has died of; what was to be read then never ends.
        """
        await asyncio.shield(asyncio.wrap_future(self._ended))

    def call(self, work: Callable[[NixlAgent], T]) -> "asyncio.Future[T]":
        """Has the thread do something, unless the future is cancelled before it begins."""
        done, loop = Future[T](), asyncio.get_running_loop()

        def command(agent: NixlAgent) -> None:
            if not done.set_running_or_notify_cancel():
                return
            try:
                done.set_result(work(agent))
            except Exception as error:  # noqa: BLE001 — it is the caller's
                done.set_exception(error)

        self._order(command)
        return asyncio.wrap_future(done, loop=loop)

    def read(self, peer: str, local: Ids, remote: Ids) -> "asyncio.Future[None]":
        """Reads blocks; see `NixlAgent.begin`.

        Returns:
            A future that is done when nothing lands any more; it fails with `NixlError`. To cancel it changes nothing.
        """
        loop = asyncio.get_running_loop()
        end: asyncio.Future[None] = loop.create_future()

        def tell(error: NixlError | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(_settle, end, error)

        self._order(lambda agent: self._begin(agent, peer, local, remote, tell))
        return end

    def lend(self, transfer_id: int, seconds: float) -> None:
        """Looks after a transfer that others read, until it was `returned` or the time is over."""
        now = time.monotonic()
        self._lent = {lent: end for lent, end in self._lent.items() if end > now} | {transfer_id: now + seconds}
        self._order(lambda _agent: failpoints.reach("nixl.lend"))

    def returned(self, transfer_id: int) -> None:
        """Forgets a transfer that others have read."""
        self._lent = {lent: end for lent, end in self._lent.items() if lent != transfer_id}

    async def close(self) -> None:
        """Ends the thread; the agent stays."""
        self._is_closed = True
        self._wake.set()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)

    def _order(self, command: Callable[[NixlAgent], None]) -> None:
        self._commands.append(command)
        self._wake.set()

    # On the thread

    def _run(self) -> None:
        try:
            agent = self._open_agent()
        except Exception as error:  # noqa: BLE001 — it is the starter's
            self._opened.set_exception(error)
            return
        _IMMORTAL.append(agent)
        self._opened.set_result(agent.endpoint)
        try:
            self._work(agent)
        except Exception as error:  # noqa: BLE001 — it is for who `run`s
            self._ended.set_exception(error)
        else:
            self._ended.set_result(None)

    def _work(self, agent: NixlAgent) -> None:
        while not self._is_closed:
            while self._commands:
                self._commands.popleft()(agent)
            agent.progress()
            self._reads = [read for read in self._reads if not _has_ended(agent, *read)]
            self._wake.wait(HOT_SECONDS if self._is_hot() else IDLE_SECONDS)
            self._wake.clear()

    def _is_hot(self) -> bool:
        now = time.monotonic()
        return bool(self._reads) or any(end > now for end in self._lent.values())

    def _begin(
        self, agent: NixlAgent, peer: str, local: Ids, remote: Ids, tell: Callable[[NixlError | None], None]
    ) -> None:
        failpoints.reach("nixl.read")
        try:
            read = agent.begin(peer, local, remote)
        except NixlError as error:
            tell(error)
        else:
            self._reads.append((read, tell))


def _has_ended(agent: NixlAgent, read: Read, tell: Callable[[NixlError | None], None]) -> bool:
    error: NixlError | None = None
    try:
        if not agent.has_ended(read):
            return False
    except NixlError as raised:
        error = raised
    agent.forget(read)
    tell(error)
    return True


def _settle(end: "asyncio.Future[None]", error: NixlError | None) -> None:
    if end.done():
        return
    if error is None:
        end.set_result(None)
    else:
        end.set_exception(error)
