"""Engine steps: planned whole by `plan_step`, then applied."""

from collections.abc import Callable

from statepool.errors import BadFieldError, StepOutOfOrderError
from statepool_server.answers import Usage
from statepool_server.blocks import ONE, ZERO, first_true
from statepool_server.holdings import Holdings, counted
from statepool_server.sequences.admissions import plan_admissions, plan_finishes
from statepool_server.sequences.applying import StepChanges
from statepool_server.sequences.commits import plan_commits, plan_settlement
from statepool_server.sequences.context import StepContext
from statepool_server.sequences.outcomes import StepOutcome
from statepool_server.sequences.plan import StepPlan
from statepool_server.sequences.requests import StepRequest
from statepool_server.sequences.room import admissions_that_fit
from statepool_server.sequences.schedules import plan_schedules
from statepool_server.sequences.table import SequenceTable, SequenceTables
from statepool_server.sequences.tables import Ints
from statepool_server.sessions import Session


class Stepping:
    """Plans and applies the steps of all sessions."""

    def __init__(
        self,
        context: StepContext,
        sequences: SequenceTables,
        holdings: Holdings,
        changes: StepChanges,
    ) -> None:
        self._context = context
        self._sequences = sequences
        self._holdings = holdings
        self._changes = changes

    def step(self, session: Session, request: StepRequest, usage: Callable[[], Usage]) -> StepOutcome:
        """Applies a step; see `Pool.step`.

        Args:
            session: The session.
            request: What is asked.
            usage: Counts the pool's blocks.
        """
        sequences = self._sequences
        table = sequences.of(session.session_id, self._context.num_spec)
        _check_numbers(table, request)
        blocks = self._context.blocks
        if (
            blocks.quarantined_count > blocks.condemned_count
        ):  # until the former owner's passes have ended, nothing moves
            blocks.check_quiesced(table.held_blocks(), "session")
        if table.steady_steps and _decodes_each(table, request):
            return self._changes.apply_steady(table, request, usage)
        table.catch_up()
        plan = self._plan(session, table, request)
        sequences.tables[session.session_id] = table
        sequences.count += len(plan.admitted_slots) - len(plan.finished_slots)
        return self._changes.apply(session, plan, usage)

    def forget(self, session: Session) -> None:
        """Forgets the sequences of a session that ends; their references are the session's, which drops them."""
        table = self._sequences.tables.pop(session.session_id, None)
        if table is not None:
            self._sequences.count -= len(table)
            ids, counts = counted(table.held_blocks())
            self._holdings.in_sequences[ids] -= counts

    def _plan(self, session: Session, table: SequenceTable, request: StepRequest) -> StepPlan:
        plan = self._planned(session, table, request, frozenset())
        fitting = admissions_that_fit(plan, self._context)
        if fitting == len(request.admissions):
            return plan
        passed_over = frozenset(request.admissions.sequence_ids[fitting:].tolist())
        return self._planned(session, table, request.with_admissions(fitting), passed_over)

    def _planned(
        self, session: Session, table: SequenceTable, request: StepRequest, passed_over: frozenset[int]
    ) -> StepPlan:
        slots = table.prepare(len(request.admissions))
        plan = StepPlan(
            request=request,
            table=table,
            settled_step=max(table.settled_step, request.settled_step),
            num_computed=table.num_computed.copy(),
            num_accepted=table.num_accepted.copy(),
            drafts=table.drafts.copy(),
            unsettled_step=table.unsettled_step.copy(),
            running_ids=table.running_ids,
            running_slots=table.running_slots,
        )
        plan_settlement(plan, self._context)
        plan_commits(plan, self._context)
        plan_finishes(plan)
        plan_admissions(plan, self._context, session, slots, self._sequences.count)
        plan_schedules(plan, self._context, passed_over)
        return plan


def _check_numbers(table: SequenceTable, request: StepRequest) -> None:
    if request.step != table.last_step + 1:
        raise StepOutOfOrderError(
            f"step {request.step}: the next step of the session is {table.last_step + 1}",
            field="step",
            last_step=table.last_step,
        )
    if request.settled_step >= request.step:
        raise BadFieldError(
            f"settled_step is {request.settled_step}, not below step {request.step}", field="settled_step"
        )


def _decodes_each(table: SequenceTable, request: StepRequest) -> bool:
    """Tells whether a step is the commonest of all: each running sequence decodes one more token, and nothing else."""
    commits, schedules = request.commits, request.schedules
    if len(request.finishes) or len(request.admissions) or len(commits.hash_rows) or len(table.unsettled):
        return False
    rows = len(table.running_ids)
    return (
        table.is_running(commits.sequence_ids)
        and table.is_running(schedules.sequence_ids)
        and _is_all(commits.accepted_tokens, ONE, rows)
        and _is_all(schedules.num_tokens, ONE, rows)
        and _is_all(schedules.num_draft_tokens, ZERO, rows)
    )


def _is_all(column: Ints, value: Ints, rows: int) -> bool:
    return len(column) in (1, rows) and first_true(column != value) < 0
