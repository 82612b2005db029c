"""Memory work under way: begun by acts, run stage by stage on copy threads, ended by acts.

That a stage has ended is written down before the next begins. One that was cut off by the end of the process is run
again by the next, where it is restartable; where it is not, the work has failed.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from statepool.errors import StateLostError
from statepool_server import failpoints
from statepool_server.memory import Memory, Stage
from statepool_server.pool import Pool
from statepool_server.service.copying import Chore, CopyThreads
from statepool_server.service.ledger import Kind, Ledger, ValueCodec
from statepool_server.work import MemoryWork, WorkEnd

_REMEMBERED_FAILURES = 4096
_log = structlog.get_logger("statepool.copying")


@dataclass(frozen=True, slots=True)
class WorkEnded:
    """The request of `Kind.WORK_ENDED`."""

    number: int
    """The work."""
    succeeded: bool
    """Whether it was done."""


@dataclass(slots=True, eq=False)
class WorkUnderWay:
    """Work that has not ended."""

    number: int
    """Counts from 1, never reused."""
    work: MemoryWork
    """What is to be done."""
    is_stream: bool
    """Whether a stream does it, which ends it itself."""
    stage: int = 0
    """Stages that have ended."""


@dataclass(frozen=True, slots=True)
class WorksState:
    """All work at a moment."""

    under_way: list[WorkUnderWay]
    """What has not ended, oldest first."""
    failed: list[int]
    """Numbers of work that was not done."""
    last_number: int
    """The highest number so far."""


class Works:
    """Memory work by number.

    Attributes:
        ended: Called in the act that ends work, with its number and the count of blocks that it published.
    """

    def __init__(self, ledger: Ledger, pool: Pool, memory: Memory, copies: CopyThreads) -> None:
        self.ended: list[Callable[[int, WorkEnd], None]] = []
        self._ledger = ledger
        self._pool = pool
        self._memory = memory
        self._copies = copies
        self._under_way: dict[int, WorkUnderWay] = {}
        self._waiters: dict[int, asyncio.Future[None]] = {}
        self._begun: list[WorkUnderWay] = []
        self._failed: OrderedDict[int, None] = OrderedDict()
        self._last_number = 0
        ledger.register(Kind.STAGE_ENDED, ValueCodec(int), self._stage_ended, can_be_refused=False)
        ledger.register(Kind.WORK_ENDED, ValueCodec(WorkEnded), self._work_ended, can_be_refused=False)
        ledger.then.append(self._start)

    def begin(self, work: MemoryWork, *, is_stream: bool = False) -> int:
        """Takes work on, in an act; it starts when the act has been written down.

        Args:
            work: What is to be done; its blocks are pinned.
            is_stream: A stream does it, and calls `end`.

        Returns:
            Its number.
        """
        self._last_number += 1
        begun = WorkUnderWay(self._last_number, work, is_stream)
        self._under_way[begun.number] = begun
        if not is_stream:
            self._begun.append(begun)
        return begun.number

    def end(self, number: int, *, succeeded: bool = True) -> None:
        """Ends work, by an act of its own."""
        self._ledger.perform(Kind.WORK_ENDED, WorkEnded(number, succeeded))

    def finish(self, number: int) -> None:
        """Ends work that was done, in an act of another kind.

        Raises:
            KeyError: It is not under way.
        """
        self._work_ended(WorkEnded(number, True), 0)

    def work(self, number: int) -> MemoryWork:
        """Shows work that is under way.

        Raises:
            KeyError: It is not.
        """
        return self._under_way[number].work

    def is_under_way(self, number: int) -> bool:
        """Tells whether work has not ended."""
        return number in self._under_way

    async def until_ended(self, number: int) -> None:
        """Waits until work has ended, if it is under way.

        Raises:
            CopiesStalledError: Memory work stands still.
        """
        if number in self._under_way:
            waiter = self._waiters.setdefault(number, asyncio.get_running_loop().create_future())
            await self._copies.wait(waiter)

    def check(self, number: int, what: str) -> None:
        """Checks that work was done.

        Args:
            number: The work.
            what: What it was, for the message.

        Raises:
            StateLostError: It was not.
        """
        if number in self._failed:
            raise StateLostError(f"the copies of {what} failed")

    def resume(self) -> None:
        """Goes on with what another process has begun, ends what it can no longer do, and gives up what is unproven."""
        self._memory.forget_others(self._under_way)
        for begun in list(self._under_way.values()):
            if begun.is_stream:
                self.end(begun.number, succeeded=False)
                continue
            stages = self._memory.stages(begun.work, begun.number)
            if begun.stage < len(stages) and not stages[begun.stage].is_restartable():
                _log.error("state lost: copies were cut off that cannot be run again", session=begun.work.session_id)
                self.end(begun.number, succeeded=False)
            else:
                self._run(begun, stages)

    def dump(self) -> WorksState:
        """Shows everything; the work itself, not copies."""
        return WorksState(list(self._under_way.values()), list(self._failed), self._last_number)

    def load(self, state: WorksState) -> None:
        """Takes a state over; nothing starts before `resume`."""
        self._under_way = {begun.number: begun for begun in state.under_way}
        self._failed = OrderedDict.fromkeys(state.failed)
        self._last_number = state.last_number

    def forget_begun(self) -> None:
        """Starts none of what acts have begun so far: they were run again."""
        self._begun.clear()

    def _start(self) -> None:
        if self._begun:
            begun, self._begun = self._begun, []
            for work in begun:
                self._run(work, self._memory.stages(work.work, work.number))

    def _run(self, begun: WorkUnderWay, stages: list[Stage]) -> None:
        """Runs the next stage; when it has ended that is written down, and the stage after it runs."""
        if begun.stage == len(stages):
            self.end(begun.number)
            return

        def ended(running: "asyncio.Future[None]") -> None:
            succeeded = not running.cancelled() and running.exception() is None
            failpoints.reach("stage")
            if succeeded and begun.stage + 1 < len(stages):
                self._ledger.perform(Kind.STAGE_ENDED, begun.number)
                self._run(begun, stages)
                return
            self.end(begun.number, succeeded=succeeded)
            if len(stages) > 1:
                self._memory.forget(begun.number)

        stage = stages[begun.stage]
        self._copies.submit(stage.run, Chore.COPY, stage.nbytes).add_done_callback(ended)

    def _stage_ended(self, number: int, _now_ns: int) -> None:
        self._under_way[number].stage += 1

    def _work_ended(self, request: WorkEnded, _now_ns: int) -> None:
        begun = self._under_way.pop(request.number)
        end = self._pool.finish_work(begun.work, succeeded=request.succeeded)
        if not request.succeeded:
            self._failed[request.number] = None
            if len(self._failed) > _REMEMBERED_FAILURES:
                self._failed.popitem(last=False)
        for listener in self.ended:
            listener(request.number, end)
        waiter = self._waiters.pop(request.number, None)
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
