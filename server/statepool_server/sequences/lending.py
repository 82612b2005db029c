"""Finds the state of a sequence that stands still, so that it can be lent."""

import numpy as np

from statepool.errors import BlockBusyError, StepOutOfOrderError
from statepool_server.blocks import BlockTable, first_true
from statepool_server.recency import Ids
from statepool_server.sequences.table import IDLE, SequenceTable
from statepool_server.sequences.tables import Ints
from statepool_server.transfers import LentStates

_FIELD = "sequence_id"


def state_of(table: SequenceTable, sequence_id: int, blocks: BlockTable, block_tokens: int) -> LentStates:
    """Finds where the state of a sequence stands, shifted or not.

    Args:
        table: The sequences of the session.
        sequence_id: The sequence.
        blocks: The table of blocks.
        block_tokens: Tokens of a column.

    Raises:
        SequenceNotFoundError: The session has no such sequence.
        StepOutOfOrderError: It has an outstanding step, or one that is not settled, or no state yet.
        StateLostError: Its state is gone.
    """
    table.catch_up()
    slot = table.slots(np.array([sequence_id], np.int64), _FIELD)
    table.check_not_lost(slot, _FIELD)
    _check_still(table, slot, sequence_id)
    running = table.running_column(slot, block_tokens)
    column = np.where(running >= 0, running, (table.num_computed[slot] - 1) // block_tokens)
    bias = table.num_accepted[slot] - 1
    chosen = table.tables.take(slot)
    return LentStates(
        blocks.refs(chosen.block_at(column)),
        blocks.refs(chosen.block_at(column + bias)),
        bias,
        num_tokens=int(table.num_computed[slot[0]]),
    )


def check_not_lent(table: SequenceTable, slots: Ints, lent: Ids, blocks: BlockTable, field: str) -> None:
    """Refuses passes that would write a state while it is lent; a committed one is without harm: no pass writes it.

    Args:
        table: The sequences.
        slots: Those that are to run, ``[n]``.
        lent: How many transfers pin each block, ``[block_count]``.
        blocks: The table of blocks.
        field: Request field whose rows they are.

    Raises:
        BlockBusyError: There is one.
    """
    rows, _, named = table.tables.take(slots).entries()
    at = first_true((lent[named] > 0) & ~blocks.committed[named])
    if at >= 0:
        raise BlockBusyError(
            f"{field}[{rows[at]}]: block {named[at]} is lent to a transfer", field=field, row=int(rows[at])
        )


def _check_still(table: SequenceTable, slot: Ints, sequence_id: int) -> None:
    why = ""
    if table.drafts[slot[0]] != IDLE:
        why = "has an outstanding step"
    elif table.unsettled_step[slot[0]] > table.settled_step:
        why = f"has run in step {table.unsettled_step[slot[0]]}, which is not settled"
    elif not table.num_computed[slot[0]]:
        why = "has no state yet"
    if why:
        raise StepOutOfOrderError(
            f"sequence {sequence_id} {why}", field=_FIELD, settled_step=table.settled_step, last_step=table.last_step
        )
