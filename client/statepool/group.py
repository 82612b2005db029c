"""What drives the servers of one tensor-parallel group with one stream of steps: all of it but the I/O."""

from __future__ import annotations

import copy
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

from statepool.errors import CancelledError, DivergedError, GroupError, StatepoolError
from statepool.outcomes import StepOutcome

if TYPE_CHECKING:
    from statepool.handle import SchedulerHandle

S = TypeVar("S", bound="SchedulerHandle")

Answer: TypeAlias = "StepOutcome | StatepoolError"
"""What a member answered to a step: an outcome, or why it was refused."""


class GroupHandle(Generic[S]):
    """The members of a group, what they have answered, and whether they agree.

    The domain is deterministic, so servers that have got the same steps in the same order answer the same, block ids
    and digests included. Where one of them does not, or cannot be heard, nothing that the group would do from there on
    is right: it ends for good, with one error for all.
    """

    def __init__(self, schedulers: Sequence[S]) -> None:
        """Makes a group.

        Args:
            schedulers: One of each server, in the order of their ranks, none of them opened; they are the group's.

        Raises:
            ValueError: There is none.
        """
        if not schedulers:
            raise ValueError("a group has at least one member")
        self._members = tuple(schedulers)
        self._answers: tuple[deque[Answer], ...] = tuple(deque() for _ in schedulers)
        self._sent: deque[int] = deque()
        self._error: GroupError | None = None
        self._is_closed = False

    @property
    def error(self) -> GroupError | None:
        """Why the group has ended; None: it has not."""
        return self._error

    @property
    def targets(self) -> tuple[str, ...]:
        """Where its members are, in gRPC's naming."""
        return tuple(member.target for member in self._members)

    @property
    def unreceived_steps(self) -> tuple[int, ...]:
        """Numbers of the steps that were sent and whose outcomes were not received, in the order of sending."""
        return tuple(self._sent)

    @property
    def is_under_pressure(self) -> bool:
        """Whether blocks are short, by the word of any member: preempt or admit less."""
        return any(member.is_under_pressure for member in self._members)

    @property
    def is_going_away(self) -> bool:
        """Whether any member's server is going to stop."""
        return any(member.is_going_away for member in self._members)

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "open" if self._error is None else repr(self._error)
        return f"<{type(self).__name__} of {len(self._members)}, {state}, not received: {list(self._sent)}>"

    def _check(self) -> None:
        """Raises if no step can be sent or received any more."""
        if self._error is not None:
            raise copy.copy(self._error) from self._error.__cause__
        if self._is_closed:
            raise RuntimeError("the group is closed")

    def _ended(self, failures: Mapping[int, StatepoolError]) -> GroupError:
        """Ends the group for what has become of some members; the first of them is named."""
        named = {self._members[index].target: failures[index] for index in sorted(failures)}
        target, cause = next(iter(named.items()))
        others = f" (and {len(named) - 1} more)" if len(named) > 1 else ""
        self._error = GroupError(f"the group has lost {target}{others}: {cause.message}", named)
        self._error.__cause__ = cause
        return self._error

    def _lacking(self) -> list[int]:
        """Lists the members whose answer to the next step is not there."""
        return [index for index, answers in enumerate(self._answers) if not answers]

    def _keep(self, index: int, answer: Answer) -> None:
        self._answers[index].append(answer)

    def _is_refusal(self, index: int) -> bool:
        """Tells whether the error that a member has raised is its answer to the next step."""
        return self._sent[0] not in self._members[index].unreceived_steps

    def _decided(self) -> tuple[Answer, Mapping[int, StatepoolError]]:
        """Takes everybody's answer to the next step; gives that of most, and who differs from it."""
        self._sent.popleft()
        answers = [kept.popleft() for kept in self._answers]
        facts = [_facts(answer) for answer in answers]
        most = Counter(facts).most_common(1)[0][0]
        return answers[facts.index(most)], {
            index: answer if isinstance(answer, StatepoolError) else DivergedError(_difference(fact, most))
            for index, (answer, fact) in enumerate(zip(answers, facts, strict=True))
            if fact != most
        }

    def _standing(self) -> Mapping[int, StatepoolError]:
        """Compares where the members' sessions stand: who has taken another number of steps than the first."""
        first = self._members[0].next_step
        return {
            index: DivergedError(f"its next step is {member.next_step}, and that of the first {first}")
            for index, member in enumerate(self._members)
            if member.next_step != first
        }


def lost_by(error: BaseException) -> StatepoolError:
    """Makes of what a member has raised why it is lost; a member that somebody has closed raises a `RuntimeError`."""
    return error if isinstance(error, StatepoolError) else CancelledError(str(error) or repr(error))


def _facts(answer: Answer) -> tuple[object, ...]:
    """Extracts what must be equal; the digest has in it what was admitted, found and allocated."""
    if isinstance(answer, StatepoolError):
        return type(answer).__name__, tuple(sorted(answer.metadata.items()))
    return "applied", answer.step, answer.digest


def _difference(fact: tuple[object, ...], most: tuple[object, ...]) -> str:
    if most[0] != fact[0]:
        return f"it has applied the step, and others have refused it: {most[0]}"
    return f"digest {fact[-1]:#018x} after step {fact[1]}, and others have {most[-1]:#018x}"
