"""Processes that map the pool's memory, and the fences that they have not answered yet."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from statepool.errors import AttachmentNotFoundError, BadFieldError, QuotaExceededError
from statepool_server.recency import Ids

EVERY = 0
"""Stands for all attachments."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """A process that maps the arena of one rank."""

    attachment_id: int
    """Counts from 1, never reused."""
    rank_index: int
    """The rank."""
    read_only: bool
    """Whether it only reads; fences do not wait for it."""


@dataclass(frozen=True, slots=True, eq=False)
class Fence:
    """A session that is lost, and what may still be written for it."""

    number: int
    """Counts from 1."""
    session_id: int
    """The session."""
    epoch: int
    """Its epoch until then."""
    block_ids: Ids
    """Its uncommitted blocks of that moment, ``[n]``; in quarantine while the fence stands."""
    awaited: set[int] = field(default_factory=set)
    """Attachments that have not answered."""


@dataclass(frozen=True, slots=True)
class AttachmentsState:
    """Attachments and fences at a moment."""

    live: list[Attachment]
    """The attachments, in the order of their ids."""
    fences: list[Fence]
    """The fences that stand, in the order of their numbers."""
    last_id: int
    """Highest attachment id that was given out."""
    last_fence: int
    """Number of the last fence."""


class AttachmentTable:
    """Attachments and fences by id.

    Attributes:
        live: The attachments, in the order of their ids.
        fences: The fences that stand, in the order of their numbers.
    """

    def __init__(self, max_attachments: int) -> None:
        self.live: dict[int, Attachment] = {}
        self.fences: dict[int, Fence] = {}
        self._max_attachments = max_attachments
        self._last_id = self._last_fence = 0

    @property
    def last_fence(self) -> int:
        """Number of the last fence: so many were put up."""
        return self._last_fence

    def open(self, rank_index: int, read_only: bool) -> Attachment:
        """Adds an attachment.

        Raises:
            QuotaExceededError: There are as many as may be.
        """
        if len(self.live) >= self._max_attachments:
            limit = self._max_attachments
            raise QuotaExceededError(f"{limit} processes are attached already", limit=limit)
        self._last_id += 1
        self.live[self._last_id] = attachment = Attachment(self._last_id, rank_index, read_only)
        return attachment

    def check(self, attachment_id: int) -> None:
        """Checks that there is such an attachment.

        Raises:
            AttachmentNotFoundError: There is not.
        """
        if attachment_id not in self.live:
            raise AttachmentNotFoundError(f"no attachment {attachment_id}", field="attachment_id")

    def close(self, attachment_id: int) -> Iterator[Fence]:
        """Removes an attachment; yields the fences that waited for nothing else, each when it has been taken out."""
        yield from self.acquit(attachment_id)
        del self.live[attachment_id]

    def fence(self, session_id: int, epoch: int, block_ids: Ids) -> None:
        """Puts a fence up that waits for every process that may be writing."""
        self._last_fence += 1
        self.fences[self._last_fence] = Fence(self._last_fence, session_id, epoch, block_ids, set(self.writers()))

    def writers(self) -> list[int]:
        """Lists the attachments that may write."""
        return [attachment_id for attachment_id, attachment in self.live.items() if not attachment.read_only]

    def answered(self, attachment_id: int, number: int) -> Iterator[Fence]:
        """Takes an answer; yields the fence if it waits for nothing else, when it has been taken out.

        An answer that was given before, or spared by `acquit`, changes nothing.

        Raises:
            BadFieldError: No such fence was ever put up.
        """
        if not 1 <= number <= self._last_fence:
            raise BadFieldError(f"number: there was no fence {number}", field="number")
        fence = self.fences.get(number)
        if fence is not None:
            yield from self._without(fence, {attachment_id})

    def acquit(self, attachment_id: int) -> Iterator[Fence]:
        """Spares an attachment (`EVERY`: all of them) the answers to all fences.

        Yields:
            The fences that wait for nothing else, each when it has been taken out.
        """
        spared = set(self.live) if attachment_id == EVERY else {attachment_id}
        for fence in list(self.fences.values()):
            yield from self._without(fence, spared)

    def unanswered(self, attachment_id: int) -> list[Fence]:
        """Lists the fences that wait for an attachment."""
        return [fence for fence in self.fences.values() if attachment_id in fence.awaited]

    def facts(self) -> tuple[object, ...]:
        """Tells everything as plain values, in a fixed order."""
        live = [(a.attachment_id, a.rank_index, a.read_only) for a in self.live.values()]
        fences = [
            (f.number, f.session_id, f.epoch, f.block_ids.tolist(), sorted(f.awaited)) for f in self.fences.values()
        ]
        return live, fences, self._last_id, self._last_fence

    def dump(self) -> AttachmentsState:
        """Shows everything; the fences themselves, not copies."""
        return AttachmentsState(list(self.live.values()), list(self.fences.values()), self._last_id, self._last_fence)

    def load(self, state: AttachmentsState) -> None:
        """Takes a state over; the table must be new."""
        self.live = {attachment.attachment_id: attachment for attachment in state.live}
        self.fences = {fence.number: fence for fence in state.fences}
        self._last_id, self._last_fence = state.last_id, state.last_fence

    def _without(self, fence: Fence, attachment_ids: set[int]) -> Iterator[Fence]:
        fence.awaited.difference_update(attachment_ids)
        if not fence.awaited:
            del self.fences[fence.number]
            yield fence
