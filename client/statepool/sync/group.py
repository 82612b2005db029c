"""A group of schedulers with blocking calls."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from statepool.channel import DEFAULT_TIMEOUT_SECONDS, seconds_left
from statepool.errors import StatepoolError
from statepool.group import GroupHandle, lost_by
from statepool.sync.scheduler import Scheduler

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from statepool.outcomes import StepOutcome
    from statepool.sequences import Admission, Commits, Schedules


class Group(GroupHandle[Scheduler]):
    """Drives the servers of one tensor-parallel group with one stream of steps.

    ```python
    with statepool.Group([session.scheduler() for session in sessions]) as group:
        outcome = group.step(admit=[…], schedule=…)
    ```

    Each server holds some of the ranks, and nobody else drives it: they start alike, get the same steps, and so decide
    alike. What they answer is compared (`StepOutcome.digest`). A refusal that all agree in is raised as that of one
    scheduler, and the group goes on; a member that decides otherwise, loses its session, or does not answer within the
    deadline, ends the group: this call and every later one raise `GroupError`. A context manager; used by one thread at
    a time. Sessions with ``resume_within`` outlast the restart of a server that is back within the deadline.
    """

    def open(self, *, timeout: float = DEFAULT_TIMEOUT_SECONDS) -> None:
        """Opens the streams of all members; done by the context manager.

        Args:
            timeout: Deadline in seconds.

        Raises:
            GroupError: A member cannot be reached, or its session has taken another number of steps.
        """
        self._check()
        failures: dict[int, StatepoolError] = {}
        deadline = time.monotonic() + timeout
        for index, member in enumerate(self._members):
            try:
                member.open(timeout=seconds_left(deadline))
            except StatepoolError as error:
                failures[index] = error
                break  # those behind it are not to blame that it took their time
        self._end_for(failures or self._standing())

    def step(
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
        """Has every member apply an engine step; arguments, result and refusals as `Scheduler.step`.

        Raises:
            GroupError: The group has ended.
            StatepoolError: All members have refused the step for this.
            RuntimeError: A step was not received yet, or the group is not open.
        """
        self._check()
        if self._sent:
            raise RuntimeError(f"steps {self.unreceived_steps} were not received yet")
        self.send(
            admit=admit,
            schedule=schedule,
            commit=commit,
            finish=finish,
            settled_step=settled_step,
            partial_admission=partial_admission,
        )
        return self.receive(timeout=timeout)

    def send(
        self,
        *,
        admit: Sequence[Admission] = (),
        schedule: Schedules | None = None,
        commit: Commits | None = None,
        finish: ArrayLike = (),
        settled_step: int | None = None,
        partial_admission: bool = False,
    ) -> int:
        """Sends an engine step to every member without waiting; see `Scheduler.send`.

        Raises:
            GroupError: The group has ended; also where a member was closed that others were sent the step before.
            ValueError, RuntimeError: As `Scheduler.send`; nobody was sent anything.
        """
        self._check()
        failures: dict[int, StatepoolError] = {}
        numbers = set[int]()
        for index, member in enumerate(self._members):
            try:
                numbers.add(
                    member.send(
                        admit=admit,
                        schedule=schedule,
                        commit=commit,
                        finish=finish,
                        settled_step=settled_step,
                        partial_admission=partial_admission,
                    )
                )
            except Exception as error:
                if not isinstance(error, StatepoolError) and not numbers:
                    raise
                failures[index] = lost_by(error)
        self._end_for(failures)
        (number,) = numbers
        self._sent.append(number)
        return number

    def receive(self, *, timeout: float = DEFAULT_TIMEOUT_SECONDS) -> StepOutcome:
        """Receives the next outcome, in which all members agree.

        Args:
            timeout: Deadline in seconds. A member that has not answered by then is
                lost to the group.

        Raises:
            GroupError: The group has ended.
            StatepoolError: All members have refused the step for this.
            RuntimeError: Every step was received.
        """
        self._check()
        if not self._sent:
            raise RuntimeError("every step was received")
        lost: dict[int, StatepoolError] = {}
        deadline = time.monotonic() + timeout
        for index in self._lacking():
            try:
                self._keep(index, self._members[index].receive(timeout=seconds_left(deadline)))
            except StatepoolError as error:
                if self._is_refusal(index):
                    self._keep(index, error)
                else:
                    lost[index] = error
        self._end_for(lost)
        answer, failures = self._decided()
        self._end_for(failures)
        if isinstance(answer, StatepoolError):
            raise answer
        return answer

    def close(self) -> None:
        """Ends the streams; the sessions stay as they are. Closing twice does nothing."""
        self._is_closed = True
        for member in self._members:
            member.close()

    def _end_for(self, failures: Mapping[int, StatepoolError]) -> None:
        """Ends the group for what has become of some members, if something has."""
        if failures:
            error = self._ended(failures)
            self.close()
            raise error

    def __enter__(self) -> Self:
        try:
            self.open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
