"""Plans the commits of a step, and what earlier steps have left to be settled."""

import numpy as np

from statepool.errors import (
    BadFieldError,
    BlockBusyError,
    BoundaryNotWrittenError,
    ColumnLengthMismatchError,
    StepOutOfOrderError,
)
from statepool_server.blocks import ONE, WRITER, first_true
from statepool_server.sequences.context import StepContext
from statepool_server.sequences.plan import StepPlan
from statepool_server.sequences.requests import Commits
from statepool_server.sequences.rules import Moves, land
from statepool_server.sequences.table import IDLE
from statepool_server.sequences.tables import Ints
from statepool_server.sequences.unsettled import Publication

COPIED = 0
"""Step of a publication that waits for the server's own copy."""


def plan_settlement(plan: StepPlan, context: StepContext) -> None:
    """Finds what can be published and released now.

    Raises:
        BlockBusyError: A block that is to be found is being written.
    """
    unsettled = plan.table.unsettled
    if len(unsettled):
        plan.due_publications = unsettled.due_publications(plan.settled_step)
        for publication in plan.due_publications:
            _check_unwritten(context, publication)
        drops = unsettled.due_drops(plan.settled_step)
        if drops:
            plan.due_drops = np.concatenate(drops)


def _check_unwritten(context: StepContext, publication: Publication) -> None:
    at = first_true(context.blocks.busy[publication.blocks] == WRITER)
    if at >= 0:
        block = int(publication.blocks[at])
        raise BlockBusyError(
            f"block {block} is to be found from now on, but it is being written", field="settled_step", block=block
        )


def plan_commits(plan: StepPlan, context: StepContext) -> None:
    """Counts the accepted tokens, and moves states to the boundaries that were reached.

    Raises:
        SequenceNotFoundError, StepOutOfOrderError: A row names no sequence, or one without an outstanding step.
        BadFieldError: A number of accepted tokens that cannot be.
        BoundaryNotWrittenError: A hash for a boundary at which no state stands.
        ColumnLengthMismatchError: Columns of different lengths.
        BlockBusyError: A block that must be copied is in use, or one that is to be found is being written.
        StateLostError: The state of a sequence is gone.
    """
    commits, table = plan.request.commits, plan.table
    if commits.sequence_ids is None:
        slots = table.running_slots
    else:
        slots = table.slots(commits.sequence_ids, "commits.sequence_ids")
    table.check_not_lost(slots, "commits.sequence_ids")
    accepted = commits.accepted_tokens
    if len(accepted) not in (1, len(slots)):
        raise ColumnLengthMismatchError(
            f"commits.accepted_tokens has {len(accepted)} values for {len(slots)} rows", field="commits.accepted_tokens"
        )
    drafts = plan.drafts[slots]
    _check_outstanding(drafts, accepted)
    written = table.written[slots]
    computed = written + (accepted - ONE)
    reached = computed % context.block_tokens < accepted  # the last boundary is at or after `written`
    plan.num_computed[slots], plan.num_accepted[slots], plan.drafts[slots] = computed, accepted, IDLE
    plan.committed_slots = slots
    if first_true(reached) >= 0:
        rows = reached.nonzero()[0]
        boundaries = computed[rows] - computed[rows] % context.block_tokens
        _land(plan, context, slots, rows, boundaries, written[rows])
    elif len(commits.hash_rows):
        _refuse_hash(commits, 0)


def _check_outstanding(drafts: Ints, accepted: Ints) -> None:
    row = first_true((accepted < ONE) | (accepted > drafts + ONE))  # no number is right for a sequence that is IDLE
    if row < 0:
        return
    if drafts[row] == IDLE:
        raise StepOutOfOrderError(
            f"commits.sequence_ids[{row}]: the sequence has no outstanding step",
            field="commits.sequence_ids",
            row=row,
        )
    raise BadFieldError(
        f"commits.accepted_tokens[{row}]: {np.broadcast_to(accepted, len(drafts))[row]} is not 1 to {drafts[row] + 1}",
        field="commits.accepted_tokens",
        row=row,
    )


def _land(plan: StepPlan, context: StepContext, slots: Ints, rows: Ints, boundaries: Ints, written: Ints) -> None:
    table, chosen = plan.table, slots[rows]
    running = table.running_column(chosen, context.block_tokens)
    moves, blocks, in_place = land(table.tables.take(chosen), rows, running, boundaries, written, context.block_tokens)
    plan.num_accepted[chosen[in_place]] = 1
    settled_by = plan.unsettled_step[chosen]
    if len(moves):
        _check_copies(plan, context, slots, moves)
        later = plan.request.step if plan.request.by_worker else COPIED
        settled_by[np.searchsorted(rows, moves.rows)] = later
        if plan.request.by_worker:
            plan.unsettled_step[slots[moves.rows]] = plan.request.step
        plan.post_copies = moves
    if len(plan.request.commits.hash_rows):
        _publish(plan, context, slots, rows, boundaries, blocks, settled_by)


def _check_copies(plan: StepPlan, context: StepContext, slots: Ints, moves: Moves) -> None:
    check_settled(plan, slots[moves.rows], moves.rows, "commits.sequence_ids")
    field, blocks = "commits.sequence_ids", context.blocks
    blocks.check_idle(moves.dst_blocks, field, readers_too=True, rows=moves.rows)
    blocks.check_idle(moves.src_blocks, field, readers_too=False, rows=moves.rows)
    blocks.check_idle(moves.temporal_blocks, field, readers_too=False, rows=moves.rows)


def check_settled(plan: StepPlan, slots: Ints, rows: Ints, field: str) -> None:
    """Refuses copies by the server of states whose step is not settled.

    Raises:
        StepOutOfOrderError: There is one.
    """
    if plan.request.by_worker:
        return
    steps = plan.unsettled_step[slots]
    at = first_true(steps > plan.settled_step)
    if at >= 0:
        raise StepOutOfOrderError(
            f"{field}[{rows[at]}]: step {steps[at]} is not settled, so the server cannot copy what it has written",
            field=field,
            row=int(rows[at]),
            settled_step=plan.settled_step,
        )


def _publish(
    plan: StepPlan, context: StepContext, slots: Ints, rows: Ints, boundaries: Ints, blocks: Ints, settled_by: Ints
) -> None:
    commits = plan.request.commits
    places = np.searchsorted(rows, commits.hash_rows)
    found = places < len(rows)
    found &= rows[np.where(found, places, 0)] == commits.hash_rows
    found &= boundaries[np.where(found, places, 0)] == commits.boundary_tokens
    missing = first_true(~found)
    if missing >= 0:
        _refuse_hash(commits, missing)
    context.blocks.check_idle(blocks[places], "commits.hash_rows", readers_too=False, rows=commits.hash_rows)
    namespaces = [plan.table.namespaces[slot] for slot in slots[commits.hash_rows].tolist()]
    plan.publication = Publication(blocks[places], namespaces, commits.prefix_hashes)
    plan.publication_steps = settled_by[places]


def _refuse_hash(commits: Commits, index: int) -> None:
    row, boundary = int(commits.hash_rows[index]), int(commits.boundary_tokens[index])
    raise BoundaryNotWrittenError(
        f"commits.hash_rows[{index}]: no state of row {row} stands at token {boundary}",
        field="commits.boundary_tokens",
        row=row,
    )
