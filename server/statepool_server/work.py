"""Memory work: what is left to be done with the bytes of blocks when a change has been decided."""

from dataclasses import dataclass, field

import numpy as np

from statepool.copies import Column, CopyPlan
from statepool_server.answers import Pin
from statepool_server.sequences.unsettled import NOTHING, Publication

_NONE: Column = np.empty(0, np.int64)


def _no_copies() -> CopyPlan:
    return CopyPlan(_NONE, _NONE, _NONE, _NONE)


@dataclass(frozen=True, slots=True)
class WorkEnd:
    """What has come of memory work."""

    published: int
    """Blocks that became findable."""
    lost_sequence_ids: list[int] = field(default_factory=list)
    """Sequences whose states are gone since it failed, ascending."""


@dataclass(frozen=True, slots=True, eq=False)
class MemoryWork:
    """Work that the server does itself; its blocks are pinned until `Pool.finish_work`."""

    session_id: int
    """Session that it is done for."""
    pin: Pin
    """The blocks."""
    wiped_blocks: Column = field(default_factory=lambda: _NONE)
    """Zeroed first: what they hold is another tenant's."""
    post_copies: CopyPlan = field(default_factory=_no_copies)
    """Done first as well."""
    zeroed_blocks: Column = field(default_factory=lambda: _NONE)
    """Zeroed when the post-copies are done."""
    pre_copies: CopyPlan = field(default_factory=_no_copies)
    """Done when the post-copies are done."""
    received_blocks: Column = field(default_factory=lambda: _NONE)
    """Blocks that the session loses unless the work succeeds: they are filled from elsewhere."""
    publication: Publication = NOTHING
    """States that are to be found when the work is done."""

    def written_blocks(self) -> Column:
        """Lists the blocks of sequences that it writes."""
        copied = self.post_copies.dst_blocks, self.pre_copies.dst_blocks
        return np.concatenate((self.wiped_blocks, self.zeroed_blocks, *copied))
