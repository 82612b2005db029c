"""Plans the schedules of a step."""

import numpy as np

from statepool.errors import BadFieldError, ColumnLengthMismatchError, SequenceNotFoundError, StepOutOfOrderError
from statepool_server.blocks import ONE, first_true
from statepool_server.sequences.commits import check_settled
from statepool_server.sequences.context import MAX_TOKENS, StepContext
from statepool_server.sequences.lending import check_not_lent
from statepool_server.sequences.plan import Drops, StepPlan
from statepool_server.sequences.rules import Growth, grow
from statepool_server.sequences.table import IDLE
from statepool_server.sequences.tables import NEW, Ints


def plan_schedules(plan: StepPlan, context: StepContext, passed_over: frozenset[int]) -> None:
    """Finds which tables change, and how.

    Args:
        plan: The plan; its commits, finishes and admissions are planned.
        context: The pool.
        passed_over: Sequences whose rows are left out, since they were not admitted.

    Raises:
        SequenceNotFoundError, StepOutOfOrderError: A row names no sequence, or one with an outstanding step.
        BadFieldError: A number of tokens or drafts that cannot be.
        ColumnLengthMismatchError: Columns of different lengths.
        BlockBusyError: A block that must be copied is in use, or the state of a sequence is lent.
        StateLostError: The state of a sequence is gone.
    """
    slots, tokens, drafts = _rows(plan, passed_over)
    if not len(slots):
        return
    plan.table.check_not_lost(slots, "schedules.sequence_ids")
    row = first_true(plan.drafts[slots] != IDLE)
    if row >= 0:
        raise StepOutOfOrderError(
            f"schedules.sequence_ids[{row}]: the sequence has an outstanding step",
            field="schedules.sequence_ids",
            row=row,
        )
    _check_counts(tokens, drafts, context.num_spec)
    table, computed = plan.table, plan.num_computed[slots]
    if context.transfers.live:
        check_not_lent(table, slots, context.transfers.lent, context.blocks, "schedules.sequence_ids")
    ends = computed + tokens
    row = first_true(ends > MAX_TOKENS)
    if row >= 0:
        raise BadFieldError(
            f"schedules.num_tokens[{row}]: more than {MAX_TOKENS} tokens", field="schedules.num_tokens", row=row
        )
    plan.scheduled_slots, plan.written, plan.num_drafts = slots, ends - drafts, drafts
    leaves = (ends > table.quiet_until[slots]) | (ends <= table.running_start[slots])
    if first_true(leaves) >= 0:
        _change(plan, context, leaves.nonzero()[0], computed, ends)
    plan.unsettled_step[slots] = plan.request.step


def _rows(plan: StepPlan, passed_over: frozenset[int]) -> tuple[Ints, Ints, Ints]:
    """Resolves the rows; returns slots, tokens and drafts."""
    schedules, field = plan.request.schedules, "schedules.sequence_ids"
    if schedules.sequence_ids is None:
        return (plan.running_slots, *_columns(plan, len(plan.running_slots)))
    ids, (tokens, drafts) = schedules.sequence_ids, _columns(plan, len(schedules.sequence_ids))
    if not len(ids):
        return ids, tokens, drafts
    if passed_over:
        plan.scheduled_rows = rows = np.array(
            [row for row, sequence_id in enumerate(ids.tolist()) if sequence_id not in passed_over], np.int64
        )
        tokens, drafts = np.broadcast_to(tokens, len(ids))[rows], np.broadcast_to(drafts, len(ids))[rows]
        ids = ids[rows]
    admitted = plan.request.admissions.sequence_ids.tolist()
    slots = plan.table.slots(ids, field, dict(zip(admitted, plan.admitted_slots.tolist(), strict=True)))
    row = first_true(np.isin(slots, plan.finished_slots)) if len(plan.finished_slots) else -1
    if row >= 0:
        raise SequenceNotFoundError(f"{field}[{row}]: the step finishes the sequence", field=field, row=row)
    plan.running_ids, plan.running_slots = ids, slots
    return slots, tokens, drafts


def _columns(plan: StepPlan, rows: int) -> tuple[Ints, Ints]:
    schedules = plan.request.schedules
    columns = {"num_tokens": schedules.num_tokens, "num_draft_tokens": schedules.num_draft_tokens}
    for name, column in columns.items():
        if len(column) not in (1, rows):
            field = f"schedules.{name}"
            raise ColumnLengthMismatchError(f"{field} has {len(column)} values for {rows} rows", field=field)
    return schedules.num_tokens, schedules.num_draft_tokens


def _check_counts(tokens: Ints, drafts: Ints, num_spec: int) -> None:
    row = first_true(tokens < ONE)
    if row >= 0:
        raise BadFieldError(
            f"schedules.num_tokens[{row}]: {tokens[row]} is below 1", field="schedules.num_tokens", row=row
        )
    if not np.count_nonzero(drafts):
        return
    row = first_true((drafts != 0) & ((drafts != tokens - 1) | (drafts > num_spec)))
    if row >= 0:
        raise BadFieldError(
            f"schedules.num_draft_tokens[{row}]: drafts are none, or all tokens but one, and at most {num_spec}",
            field="schedules.num_draft_tokens",
            row=row,
        )


def _change(plan: StepPlan, context: StepContext, rows: Ints, computed: Ints, ends: Ints) -> None:
    """Works the rows out whose tables change."""
    table, slots = plan.table, plan.scheduled_slots[rows]
    block_tokens = context.block_tokens
    running = table.running_column(slots, block_tokens)
    targets = (ends[rows] - 1) // block_tokens
    growth = grow(table.tables.take(slots), computed[rows], plan.num_accepted[slots], running, targets, block_tokens)
    plan.changed, plan.growth = rows, growth
    plan.retire_drops = Drops(growth.retired_blocks, plan.unsettled_step[slots][growth.retired_rows])
    plan.new_blocks = np.count_nonzero(growth.tables.tail == NEW, axis=1)
    if len(growth.moved):
        check_settled(plan, slots[growth.moved], rows[growth.moved], "schedules.sequence_ids")
        _check_idle(context, growth, rows)


def _check_idle(context: StepContext, growth: Growth, rows: Ints) -> None:
    moved, (known, targets) = growth.moved, growth.known_targets()
    field, blocks = "schedules.sequence_ids", context.blocks
    blocks.check_idle(targets, field, readers_too=True, rows=rows[known])
    blocks.check_idle(growth.src_blocks[moved], field, readers_too=False, rows=rows[moved])
    blocks.check_idle(growth.temporal_blocks[moved], field, readers_too=False, rows=rows[moved])
