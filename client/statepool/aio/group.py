"""A group of schedulers for asyncio; see `statepool.sync.group`."""

# ruff: noqa: ASYNC109 — the deadline of a wait that several streams have in common

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from statepool.aio.scheduler import AsyncScheduler
from statepool.channel import DEFAULT_TIMEOUT_SECONDS
from statepool.errors import StatepoolError
from statepool.group import GroupHandle, lost_by

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from statepool.calls.sequences import StepArguments
    from statepool.outcomes import StepOutcome
    from statepool.sequences import Admission, Commits, Schedules


class AsyncGroup(GroupHandle[AsyncScheduler]):
    """Drives the servers of one tensor-parallel group with one stream of steps.

    An async context manager. The methods, their arguments and their errors are those of `statepool.sync.group.Group`. A
    caller that is cancelled leaves the step to everybody or to nobody: `receive` gives its outcome.
    """

    _sending: asyncio.Future[int] | None = None

    async def open(self, *, timeout: float = DEFAULT_TIMEOUT_SECONDS) -> None:
        """Opens the streams of all members; see `Group.open`."""
        self._check()
        opened = await asyncio.gather(
            *(member.open(timeout=timeout) for member in self._members), return_exceptions=True
        )
        await self._end_for(_failures(opened))
        self._raise_others(opened)
        await self._end_for(self._standing())

    async def step(
        self,
        *,
        admit: Sequence[Admission] = (),
        schedule: Schedules | None = None,
        commit: Commits | None = None,
        finish: ArrayLike = (),
        settled_step: int | None = None,
        partial_admission: bool = False,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> StepOutcome:
        """Has every member apply an engine step; see `Group.step`."""
        self._check()
        if self._sent or self._sending is not None:
            raise RuntimeError(f"steps {self.unreceived_steps} were not received yet")
        await self.send(
            admit=admit,
            schedule=schedule,
            commit=commit,
            finish=finish,
            settled_step=settled_step,
            partial_admission=partial_admission,
        )
        return await self.receive(timeout=timeout)

    async def send(
        self,
        *,
        admit: Sequence[Admission] = (),
        schedule: Schedules | None = None,
        commit: Commits | None = None,
        finish: ArrayLike = (),
        settled_step: int | None = None,
        partial_admission: bool = False,
    ) -> int:
        """Sends an engine step to every member without waiting; see `Group.send`."""
        await self._until_sent()
        self._check()
        arguments: StepArguments = {
            "admit": admit,
            "schedule": schedule,
            "commit": commit,
            "finish": finish,
            "settled_step": settled_step,
            "partial_admission": partial_admission,
        }
        self._sending = asyncio.ensure_future(self._send(arguments))
        return await self._until_sent()

    async def receive(self, *, timeout: float = DEFAULT_TIMEOUT_SECONDS) -> StepOutcome:
        """Receives the next outcome, in which all members agree; see `Group.receive`."""
        await self._until_sent()
        self._check()
        if not self._sent:
            raise RuntimeError("every step was received")
        lacking = self._lacking()
        received = await asyncio.gather(*(self._receive(index, timeout) for index in lacking), return_exceptions=True)
        await self._end_for({lacking[at]: error for at, error in _failures(received).items()})
        self._raise_others(received)
        answer, failures = self._decided()
        await self._end_for(failures)
        if isinstance(answer, StatepoolError):
            raise answer
        return answer

    async def close(self) -> None:
        """Ends the streams; see `Group.close`."""
        self._is_closed = True
        for member in self._members:
            await member.close()

    async def _until_sent(self) -> int:
        """Waits until the step that is being sent, if there is one, was sent to all members."""
        sending = self._sending
        if sending is None:
            return 0
        try:
            return await asyncio.shield(sending)
        finally:
            if sending.done():
                self._sending = None

    async def _send(self, arguments: StepArguments) -> int:
        sent = await asyncio.gather(*(member.send(**arguments) for member in self._members), return_exceptions=True)
        numbers = [number for number in sent if isinstance(number, int)]
        if self._is_closed or not numbers:
            self._raise_others(sent)
        await self._end_for({at: lost_by(error) for at, error in enumerate(sent) if isinstance(error, BaseException)})
        self._sent.append(numbers[0])
        return numbers[0]

    async def _receive(self, index: int, timeout: float) -> None:
        try:
            self._keep(index, await self._members[index].receive(timeout=timeout))
        except StatepoolError as error:
            if not self._is_refusal(index):
                raise
            self._keep(index, error)

    async def _end_for(self, failures: Mapping[int, StatepoolError]) -> None:
        """Ends the group for what has become of some members, if something has."""
        if failures:
            error = self._ended(failures)
            await self.close()
            raise error

    def _raise_others(self, results: Sequence[object]) -> None:
        """Raises what is no failure of a member, if something is not: somebody has closed it, or erred in the step."""
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, StatepoolError):
                self._check()
                raise result

    async def __aenter__(self) -> Self:
        try:
            await self.open()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


def _failures(results: Sequence[object]) -> dict[int, StatepoolError]:
    """Selects the failures of members."""
    return {index: result for index, result in enumerate(results) if isinstance(result, StatepoolError)}
