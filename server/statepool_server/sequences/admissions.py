"""Plans the finishes and admissions of a step."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from statepool.errors import (
    BadFieldError,
    BlockInSequenceError,
    BlockNotWritableError,
    QuotaExceededError,
    SequenceExistsError,
)
from statepool_server.blocks import first_true
from statepool_server.sequences.context import MAX_TOKENS, StepContext
from statepool_server.sequences.plan import Drops, StepPlan
from statepool_server.sequences.requests import Admissions
from statepool_server.sequences.tables import NULL, Ints
from statepool_server.sequences.unsettled import Publication
from statepool_server.sessions import Session


def plan_finishes(plan: StepPlan) -> None:
    """Finds the blocks of the sequences that end, and takes these out of the running list.

    Raises:
        SequenceNotFoundError, BadFieldError: A row names no sequence, or one twice.
    """
    if not len(plan.request.finishes):
        return
    slots = plan.finished_slots = plan.table.slots(plan.request.finishes, "finishes")
    rows, blocks = plan.table.tables.take(slots).deepest_first()
    plan.finish_drops = Drops(blocks, plan.unsettled_step[slots][rows])
    stays = ~np.isin(plan.running_slots, slots)
    plan.running_ids, plan.running_slots = plan.running_ids[stays], plan.running_slots[stays]


def plan_admissions(plan: StepPlan, context: StepContext, session: Session, slots: Ints, live: int) -> None:
    """Finds where new sequences begin.

    Args:
        plan: The plan.
        context: The pool.
        session: The session.
        slots: Blank slots, one for each admission.
        live: Sequences of all sessions, before the step.

    Raises:
        SequenceExistsError: An id is in use.
        QuotaExceededError: Too many sequences.
        BadFieldError: An id, a number of tokens or of hashes that cannot be.
        BlockNotOwnedError, BlockNotWritableError, BlockInSequenceError, BlockBusyError: An import that cannot be.
        GenerationStaleError, BlockIndexOutOfRangeError: A bad ref.
    """
    admissions = plan.request.admissions
    if not len(admissions):
        return
    _check(plan, context, live)
    columns, blocks = np.full(len(slots), -1, np.int64), np.full(len(slots), NULL, np.int64)
    _find_hits(plan, context, columns, blocks)
    plan.num_computed[slots] = (columns + 1) * context.block_tokens
    plan.is_import = np.zeros(len(slots), np.bool_)
    if len(admissions.import_rows):
        rows = admissions.import_rows
        blocks[rows] = _imported(context, session, admissions)
        columns[rows] = (admissions.imported_tokens - 1) // context.block_tokens
        plan.num_computed[slots[rows]] = admissions.imported_tokens
        plan.is_import[rows] = True
    plan.admitted_slots, plan.admitted_blocks = slots, blocks
    begun = blocks != NULL  # blank slots mean nothing before they are added, so the table may be prepared already
    plan.table.tables.kept_columns[slots[begun], 0] = columns[begun]
    plan.table.tables.kept_blocks[slots[begun], 0] = blocks[begun]


def _check(plan: StepPlan, context: StepContext, live: int) -> None:
    admissions, field = plan.request.admissions, "admissions.sequence_ids"
    limit = context.max_sequences
    if live - len(plan.finished_slots) + len(admissions) > limit:
        raise QuotaExceededError(f"more than {limit} sequences", field=field, limit=limit)
    finished, seen = set(plan.request.finishes.tolist()), set[int]()
    for row, sequence_id in enumerate(admissions.sequence_ids.tolist()):
        if sequence_id < 0 or sequence_id in seen:
            raise BadFieldError(f"{field}[{row}]: named twice, or not below 2**63", field=field, row=row)
        if sequence_id in plan.table and sequence_id not in finished:
            raise SequenceExistsError(f"{field}[{row}]: sequence {sequence_id} is live", field=field, row=row)
        seen.add(sequence_id)
    tokens = admissions.prompt_tokens
    _refuse((tokens < 1) | (tokens > MAX_TOKENS), "admissions.prompt_tokens", tokens)
    counts = np.diff(admissions.hash_offsets)
    _refuse(counts > tokens // context.block_tokens, "admissions.hash_offsets", counts)
    _refuse(admissions.max_hit_tokens < 0, "admissions.max_hit_tokens", admissions.max_hit_tokens)
    imported = admissions.imported_tokens
    _refuse((imported < 1) | (imported > MAX_TOKENS), "admissions.imported_tokens", imported)
    _refuse(counts[admissions.import_rows] > 0, "admissions.import_rows", admissions.import_rows)


def _refuse(bad: NDArray[np.bool_], field: str, values: Ints) -> None:
    row = first_true(bad)
    if row >= 0:
        raise BadFieldError(f"{field}[{row}]: {values[row]} cannot be", field=field, row=row)


def _find_hits(plan: StepPlan, context: StepContext, columns: Ints, blocks: Ints) -> None:
    """Searches each row's hashes from the deepest that leaves a token to compute."""
    admissions = plan.request.admissions
    if not len(admissions.prefix_hashes):
        return
    fresh = published_by(plan, context)
    for row, (namespace, hashes) in enumerate(searched(admissions, context.block_tokens)):
        found = context.prefixes.deepest(namespace, hashes)
        for depth in range(len(hashes) - 1, -1 if found is None else found[0], -1):
            block = fresh.get((namespace, hashes[depth]))
            if block is not None:
                found = depth, block
                break
        if found is not None:
            columns[row], blocks[row] = found


def searched(admissions: Admissions, block_tokens: int) -> Iterator[tuple[str, Sequence[bytes]]]:
    """Lists where each row is searched, and for which hashes: those that leave a token to compute."""
    starts, ends = admissions.hash_offsets[:-1], admissions.hash_offsets[1:]
    most = np.minimum(admissions.prompt_tokens - 1, admissions.max_hit_tokens) // block_tokens
    ends = np.minimum(ends, starts + most)
    for namespace, start, end in zip(admissions.namespaces, starts.tolist(), ends.tolist(), strict=True):
        yield namespace, admissions.prefix_hashes[start:end]


def published_by(plan: StepPlan, context: StepContext) -> dict[tuple[str, bytes], int]:
    """Lists what the index will find in addition when the step has published what is settled."""
    fresh: dict[tuple[str, bytes], int] = {}
    for publication in (*plan.due_publications, plan.publication.take(settled_rows(plan))):
        for name, block in _names(publication):
            if context.prefixes.deepest(name[0], [name[1]]) is None:
                fresh.setdefault(name, block)
    return fresh


def settled_rows(plan: StepPlan) -> Ints:
    """Finds the states of the step's own commits that can be published at once."""
    steps = plan.publication_steps
    return np.flatnonzero((steps > 0) & (steps <= plan.settled_step))


def _names(publication: Publication) -> Iterator[tuple[tuple[str, bytes], int]]:
    names = zip(publication.namespaces, publication.prefix_hashes, strict=True)
    return zip(names, publication.blocks.tolist(), strict=True)


def _imported(context: StepContext, session: Session, admissions: Admissions) -> Ints:
    field = "admissions.imported_blocks"
    ids = context.guards.destination(session, admissions.imported_blocks, field)
    row = first_true(context.guards.in_sequences(ids))
    if row >= 0:
        raise BlockInSequenceError(f"{field}[{row}]: block {ids[row]} is in a sequence", field=field, row=row)
    row = first_true(context.blocks.references[ids] != 1)
    if row >= 0:
        raise BlockNotWritableError(f"{field}[{row}]: block {ids[row]} is shared", field=field, row=row)
    return ids
