"""Whether a step's blocks can be had and may be held, and how many of its admissions when not all can."""

import numpy as np
from numpy.typing import NDArray

from statepool.errors import PoolExhaustedError, QuotaExceededError
from statepool_server.blocks import RETRY_AFTER_SECONDS
from statepool_server.sequences.admissions import published_by
from statepool_server.sequences.context import StepContext
from statepool_server.sequences.outcomes import sources
from statepool_server.sequences.plan import StepPlan
from statepool_server.sequences.tables import NULL, Ints


def admissions_that_fit(plan: StepPlan, context: StepContext) -> int:
    """Counts the admissions, from the first on, for which there are blocks.

    A step may use what is free and evictable when its own finishes and retirements are done; a hit takes its block from
    the evictable ones. What nobody holds when they are done makes room as well where the session's blocks are bounded.

    Raises:
        QuotaExceededError: The session would hold more blocks than it may, in the same cases.
        PoolExhaustedError: Not even the sequences that were there before find the blocks that they need; or not all
            admissions fit, and the step does not ask for partial admission.
    """
    blocks, count = context.blocks, len(plan.admitted_slots)
    if plan.growth is None and not count:
        return 0
    free, evictable = blocks.free_count, len(blocks.evictable)
    if int(plan.new_blocks.sum()) + len(plan.hit_blocks) <= min(free + evictable, plan.request.block_room):
        return count  # the common case: there are enough without what the step itself gives back
    dropped, references = np.unique(_dropped_now(plan), return_counts=True)
    released = dropped[_is_released(plan, context, dropped, references)]
    kept = int(np.count_nonzero(_is_findable(plan, context, released)))
    free, evictable = free + len(released) - kept, evictable + kept
    by_admissions = _blocks_of_admissions(plan)
    costs = by_admissions + _hit_costs(plan, context, dropped, references)
    others = int(plan.new_blocks.sum() - by_admissions.sum())
    needed = others + np.cumsum(costs)  # by the first admission and all others, by the first two and all others, …
    gained = others + np.cumsum(by_admissions + ((plan.admitted_blocks != NULL) & ~plan.is_import))
    room, may_gain = free + evictable, plan.request.block_room + len(released)
    fitting = int(np.count_nonzero((needed <= room) & (gained <= may_gain)))
    if others <= min(room, may_gain) and (fitting == count or plan.request.partial_admission):
        return fitting
    if others <= room and np.all(needed <= room):
        raise _too_many(int(np.append(gained, others).max()), may_gain)
    requested = others + int(costs.sum())
    raise PoolExhaustedError(
        f"the step needs {requested} blocks; when its finishes are done, {free} are free and {evictable} evictable",
        field="schedules",
        retry_after=RETRY_AFTER_SECONDS if requested <= blocks.capacity else None,
        free=free,
        evictable=evictable,
        requested=requested,
    )


def _too_many(gained: int, may_gain: int) -> QuotaExceededError:
    return QuotaExceededError(
        f"the step needs {gained} blocks, and the session's tenant may have {max(0, may_gain)} more",
        field="schedules",
        retry_after=RETRY_AFTER_SECONDS,
        room=max(0, may_gain),
    )


def _dropped_now(plan: StepPlan) -> Ints:
    """Lists the references that the step itself gives back."""
    settled = [drops.blocks[drops.steps <= plan.settled_step] for drops in (plan.finish_drops, plan.retire_drops)]
    return np.concatenate((plan.due_drops, *settled))


def _is_released(plan: StepPlan, context: StepContext, dropped: Ints, references: Ints) -> NDArray[np.bool_]:
    """Tells which blocks nobody holds or uses when they have been dropped."""
    idle: NDArray[np.bool_] = context.blocks.references[dropped] == references
    idle &= (context.blocks.busy[dropped] == 0) & (context.blocks.fences[dropped] == 0)
    if not plan.request.by_worker:  # what a worker copies waits for settlement, and so is not among the dropped
        idle &= ~np.isin(dropped, np.append(sources(plan.post_copies), plan.post_copies.dst_blocks))
    return idle


def _is_findable(plan: StepPlan, context: StepContext, released: Ints) -> NDArray[np.bool_]:
    """Tells which released blocks can be found, so that they become evictable and not blank."""
    published = list(published_by(plan, context).values())
    findable: NDArray[np.bool_] = context.blocks.listed[released] | np.isin(released, published)
    return findable


def _blocks_of_admissions(plan: StepPlan) -> Ints:
    """Counts the blocks that the schedule of each admission needs."""
    by_slot = dict(zip(plan.scheduled_slots[plan.changed].tolist(), plan.new_blocks.tolist(), strict=True))
    return np.array([by_slot.get(slot, 0) for slot in plan.admitted_slots.tolist()], np.int64)


def _hit_costs(plan: StepPlan, context: StepContext, dropped: Ints, references: Ints) -> Ints:
    """Tells for each admission whether its hit takes a block that would else be evictable."""
    costs = np.zeros(len(plan.admitted_slots), np.int64)
    given_back = dict(zip(dropped.tolist(), references.tolist(), strict=True))
    taken = set[int]()
    for row, block in enumerate(plan.admitted_blocks.tolist()):
        left = int(context.blocks.references[block]) - given_back.get(block, 0)
        evictable = left == 0 and context.blocks.busy[block] == 0
        if block and not plan.is_import[row] and evictable and block not in taken:
            costs[row] = 1
            taken.add(block)
    return costs
