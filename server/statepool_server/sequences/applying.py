"""Applies planned steps. What they need was checked, so none can fail half-way."""

import struct
from collections.abc import Callable

import numpy as np
import xxhash

from statepool.refs import BlockRefs
from statepool_server.answers import Pin, Usage
from statepool_server.blocks import ONE, BlockTable
from statepool_server.changes import Changes
from statepool_server.events import NO_IDS
from statepool_server.holdings import Holdings, counted
from statepool_server.sequences.admissions import settled_rows
from statepool_server.sequences.commits import COPIED
from statepool_server.sequences.outcomes import NO_CHANGES, StepOutcome, TableChanges, copy_plan, sources
from statepool_server.sequences.plan import Drops, StepPlan
from statepool_server.sequences.requests import StepRequest
from statepool_server.sequences.rules import NO_MOVES, Growth, Moves, pull
from statepool_server.sequences.table import SequenceTable
from statepool_server.sequences.tables import NEW, Ints
from statepool_server.sequences.unsettled import Publication
from statepool_server.sessions import Session
from statepool_server.tally import Tally
from statepool_server.work import MemoryWork


class StepChanges:
    """Changes the pool as plans say, in the order of the protocol."""

    def __init__(
        self, block_tokens: int, blocks: BlockTable, holdings: Holdings, changes: Changes, tally: Tally
    ) -> None:
        self._block_tokens = block_tokens
        self._blocks = blocks
        self._holdings = holdings
        self._changes = changes
        self._tally = tally

    def apply(self, session: Session, plan: StepPlan, usage: Callable[[], Usage]) -> StepOutcome:
        """Applies a plan.

        Args:
            session: The session.
            plan: What to do.
            usage: Counts the pool's blocks.
        """
        published = self._settle(session, plan)
        pin = self._pin(plan)
        published += self._publish_commits(session, plan)
        self._give_up(session, plan, plan.finish_drops)
        self._admit(session, plan)
        self._give_up(session, plan, plan.retire_drops)
        tables, pre_copies, zeroed, foreign = self._grow(session, plan)
        work = self._work(session, plan, pre_copies, zeroed, foreign, pin)
        self._write_back(plan)
        self._count(plan)
        counts = usage()
        plan.table.digest = _digest(plan, tables, pre_copies, counts)
        return StepOutcome(
            step=plan.request.step,
            digest=plan.table.digest,
            admitted_tokens=plan.num_computed[plan.admitted_slots],
            admitted_blocks=plan.admitted_blocks,
            tables=tables,
            post_copies=plan.post_copies,
            zeroed_blocks=zeroed,
            pre_copies=pre_copies,
            published=published,
            usage=counts,
            work=work,
            by_worker=plan.request.by_worker,
        )

    def apply_steady(self, table: SequenceTable, request: StepRequest, usage: Callable[[], Usage]) -> StepOutcome:
        """Applies a step that changes nothing but counters, in constant time.

        Args:
            table: The session's sequences, with steady steps left and nothing unsettled.
            request: The step.
            usage: Counts the pool's blocks.
        """
        table.decode_each(request.step, max(table.settled_step, request.settled_step))
        self._tally.steady_steps += 1
        counts = usage()
        table.digest = _digest_of(table.digest, _numbers(request.step, table.settled_step, counts))
        return StepOutcome(request.step, table.digest, usage=counts)

    def finish_work(self, session: Session | None, work: MemoryWork) -> int:
        """Publishes what the server has copied, and takes its pin back.

        Args:
            session: The session of the step; None: nothing is published, since it has ended or the work failed.
            work: The work.

        Returns:
            Blocks that became findable.
        """
        clear = work.publication.take(np.flatnonzero(self._blocks.fences[work.publication.blocks] == 0))
        published = 0 if session is None else self._publish(session, clear)
        self._changes.unpin(work.pin)
        return published

    def _settle(self, session: Session, plan: StepPlan) -> int:
        published = sum(self._publish(session, publication) for publication in plan.due_publications)
        self._drop(session, plan.due_drops)
        plan.table.unsettled.forget(plan.settled_step)
        return published

    def _publish_commits(self, session: Session, plan: StepPlan) -> int:
        """Publishes what is settled, and keeps what is not; what the server copies is published by `finish_work`."""
        if not len(plan.publication):
            return 0
        steps = plan.publication_steps
        later = np.flatnonzero(steps > plan.settled_step)
        plan.table.unsettled.publish_later(steps[later], plan.publication.take(later))
        return self._publish(session, plan.publication.take(settled_rows(plan)))

    def _publish(self, session: Session, publication: Publication) -> int:
        """Lets states be found; returns how many were not known under their hashes before."""
        published = 0
        for namespace in dict.fromkeys(publication.namespaces):
            rows = np.array([row for row, name in enumerate(publication.namespaces) if name == namespace])
            chosen = publication.take(rows)
            refs = self._blocks.refs(chosen.blocks)
            result = self._changes.commit(session, refs, namespace, chosen.prefix_hashes)
            published += len(chosen) - len(result.duplicate_rows)
        return published

    def _give_up(self, session: Session, plan: StepPlan, drops: Drops) -> None:
        """Drops blocks whose steps are settled, and keeps the references to the others until they are."""
        if not len(drops.blocks):
            return
        waits = drops.steps > plan.settled_step
        plan.table.unsettled.drop_later(drops.steps[waits], drops.blocks[waits])
        self._drop(session, drops.blocks[~waits])

    def _drop(self, session: Session, blocks: Ints) -> None:
        if not len(blocks):
            return
        ids, counts = blocks, ONE
        if self._blocks.first_repeat(blocks) >= 0:
            ids, counts = counted(blocks)
        self._holdings.in_sequences[ids] -= counts
        self._changes.drop(session, ids, counts)

    def _admit(self, session: Session, plan: StepPlan) -> None:
        hits = plan.hit_blocks
        if len(hits):
            np.add.at(self._holdings.in_sequences, hits, 1)
            self._changes.retain(session, hits)
        self._holdings.in_sequences[plan.admitted_blocks[plan.is_import]] += ONE

    def _grow(self, session: Session, plan: StepPlan) -> tuple[TableChanges, Moves, Ints, Ints]:
        """Allocates what tables need; tells what changed, what must be copied and zeroed, and what was another's."""
        growth = plan.growth
        if growth is None:
            return NO_CHANGES, NO_MOVES, NO_IDS, NO_IDS
        missing = growth.tables.tail == NEW
        new = self._changes.allocate(session, int(np.count_nonzero(missing))) if missing.any() else BlockRefs.empty()
        growth.tables.tail[missing] = new.block_ids
        self._holdings.in_sequences[new.block_ids] = 1
        slots = plan.scheduled_slots[plan.changed]
        rows = plan.changed if plan.scheduled_rows is None else plan.scheduled_rows[plan.changed]
        pre_copies, zeroed = pull(growth, rows, plan.num_accepted[slots])
        plan.num_accepted[slots[growth.moved]] = 1
        foreign = self._holdings.foreign(session, new.block_ids)
        return self._table_changes(plan, growth, rows, slots), pre_copies, zeroed, foreign

    def _table_changes(self, plan: StepPlan, growth: Growth, rows: Ints, slots: Ints) -> TableChanges:
        moved_on = plan.table.running_column(slots, self._block_tokens) != growth.targets
        altered = np.flatnonzero(moved_on | (plan.new_blocks > 0))
        tables, columns = growth.tables.take(altered), growth.targets[altered]
        blocks = [tables.block_at(columns + place) for place in range(tables.tail.shape[1])]
        return TableChanges(rows[altered], columns, self._blocks.refs(np.stack(blocks, axis=1).ravel()))

    def _pin(self, plan: StepPlan) -> Pin | None:
        """Pins what the server copies, as far as it is allocated; comes before anything could be reused."""
        growth, moves = plan.growth, plan.post_copies
        if plan.request.by_worker or (growth is None and not len(moves)):
            return None
        read, written = sources(moves), moves.dst_blocks
        if growth is not None:
            read = np.concatenate((read, growth.src_blocks[growth.moved], growth.temporal_blocks[growth.moved]))
            written = np.union1d(written, growth.known_targets()[1])
        return self._changes.pin(read, written)

    def _work(
        self, session: Session, plan: StepPlan, pre_copies: Moves, zeroed: Ints, foreign: Ints, pin: Pin | None
    ) -> MemoryWork | None:
        """Puts together what the server has to do; pins the blocks that were allocated for it as well."""
        if pin is None:
            return self._wiping(session, foreign) if len(foreign) else None
        fresh = np.setdiff1d(np.concatenate((pre_copies.dst_blocks, zeroed, foreign)), pin.writers)
        self._changes.pin(NO_IDS, fresh)
        copied = np.flatnonzero(plan.publication_steps == COPIED)
        return MemoryWork(
            session_id=session.session_id,
            wiped_blocks=np.setdiff1d(foreign, zeroed) if len(foreign) else foreign,
            post_copies=copy_plan(plan.post_copies),
            zeroed_blocks=zeroed,
            pre_copies=copy_plan(pre_copies),
            pin=Pin(pin.readers, np.concatenate((pin.writers, fresh))),
            publication=plan.publication.take(copied),
        )

    def _wiping(self, session: Session, foreign: Ints) -> MemoryWork:
        """What the server has to do where all else is the worker's."""
        return MemoryWork(session.session_id, self._changes.pin(NO_IDS, foreign), wiped_blocks=foreign)

    def _write_back(self, plan: StepPlan) -> None:
        table, scheduled, growth = plan.table, plan.scheduled_slots, plan.growth
        table.num_computed, table.num_accepted = plan.num_computed, plan.num_accepted
        table.drafts, table.unsettled_step = plan.drafts, plan.unsettled_step
        table.drafts[scheduled], table.written[scheduled] = plan.num_drafts, plan.written
        table.running_ids, table.running_slots = plan.running_ids, plan.running_slots
        table.last_step, table.settled_step = plan.request.step, plan.settled_step
        if growth is not None:
            slots = scheduled[plan.changed]
            table.tables.put(slots, growth.tables)
            starts = growth.targets * self._block_tokens
            table.running_start[slots] = starts
            table.quiet_until[slots] = np.where(growth.tables.is_compact(), starts + self._block_tokens, 0)
        table.steady_steps = 0
        if scheduled is plan.running_slots and not np.count_nonzero(plan.num_drafts):
            table.count_steady_steps()
        admissions = plan.request.admissions
        if len(plan.finished_slots) or len(admissions):
            table.replace(plan.finished_slots, admissions.sequence_ids, plan.admitted_slots, admissions.namespaces)

    def _count(self, plan: StepPlan) -> None:
        tally = self._tally
        tally.planned_steps += 1
        tally.finishes += len(plan.finished_slots)
        if len(plan.admitted_slots):
            searched, admissions = ~plan.is_import, plan.request.admissions
            tally.imports += len(admissions.import_rows)
            tally.admissions += len(admissions) - len(admissions.import_rows)
            tally.admission_hits += len(plan.hit_blocks)
            tally.prompt_tokens += int(admissions.prompt_tokens[searched].sum())
            tally.hit_tokens += int(plan.num_computed[plan.admitted_slots[searched]].sum())


def _digest(plan: StepPlan, tables: TableChanges, pre_copies: Moves, usage: Usage) -> int:
    """Digests what a step decided and left, together with all that came before it in the session."""
    # Only what the step touched: slots that are not in use hold what refused steps have left there.
    columns = [plan.num_computed[plan.committed_slots], plan.written]
    if plan.growth is not None or len(plan.admitted_blocks) or len(plan.post_copies):
        columns += (tables.blocks.block_ids, tables.blocks.generations, plan.admitted_blocks)
        columns += (plan.num_computed[plan.admitted_slots], plan.num_accepted[plan.committed_slots])
        columns += (plan.post_copies.dst_blocks, pre_copies.src_blocks, pre_copies.dst_blocks)
    numbers = _numbers(plan.request.step, plan.settled_step, usage)
    return _digest_of(plan.table.digest, numbers + b"".join([column.tobytes() for column in columns]))


def _numbers(step: int, settled_step: int, usage: Usage) -> bytes:
    counts = (usage.free, usage.evictable, usage.held, usage.releasing, usage.committed, usage.sequences)
    return struct.pack("<8Q", step, settled_step, *counts)


def _digest_of(before: int, content: bytes) -> int:
    return xxhash.xxh3_64_intdigest(content, seed=before)
