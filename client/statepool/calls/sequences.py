"""Calls of SequenceService, and the messages of its Schedule stream."""

from collections.abc import Sequence
from itertools import accumulate
from typing import TypedDict

from numpy.typing import ArrayLike

from statepool import rpc
from statepool.columns import columns_of_message, merge_columns
from statepool.errors import StateLostError
from statepool.outcomes import SequencePage, StepOutcome
from statepool.packing import FIXED32, FIXED64, pack
from statepool.refs import BlockRefs
from statepool.rpc import Call
from statepool.sequences import ALL_RUNNING, Admission, Commits, Execution, Notice, NoticeKind, Schedules
from statepool.v1 import sequence_pb2 as pb
from statepool.v1.types_pb2 import SessionRef
from statepool.wire import refs_to_wire, usage_from_wire

_PAGE = {2: FIXED64, 3: FIXED64, 4: FIXED32, 5: FIXED32, 6: FIXED32, 7: FIXED64, 8: FIXED32, 9: FIXED32}
_PAGE |= {10: FIXED32, 11: FIXED32, 12: FIXED32, 13: FIXED64}

_ONE_ACCEPTED = pb.Commits(all_running=True, accepted_tokens=[1])
_ONE_TOKEN = pb.Schedules(all_running=True, num_tokens=[1], num_draft_tokens=[0])


class StepArguments(TypedDict):
    """What an engine step says, besides its number; the arguments of the methods ``step`` and ``send``."""

    admit: Sequence[Admission]
    schedule: Schedules | None
    commit: Commits | None
    finish: ArrayLike
    settled_step: int | None
    partial_admission: bool


def step(session: SessionRef, number: int, execution: Execution, arguments: StepArguments) -> Call[StepOutcome]:
    """Builds Step.

    Raises:
        ValueError: A column is not integers, or would be wrapped around by the wire.
    """
    request = pb.StepRequest(session=session)
    _write_step(request.step, number, execution, arguments)
    return rpc.STEP.call(request, _applied)


def schedule_open(session: SessionRef) -> pb.ScheduleRequest:
    """Builds the first message of a Schedule stream."""
    return pb.ScheduleRequest(open=session)


def schedule_step(number: int, execution: Execution, arguments: StepArguments) -> pb.ScheduleRequest:
    """Builds any other message of a Schedule stream.

    Raises:
        ValueError: As `step`.
    """
    request = pb.ScheduleRequest()
    _write_step(request.step, number, execution, arguments)
    return request


def is_one_each(arguments: StepArguments) -> bool:
    """Tells whether a step is the commonest of all: each running sequence has accepted a token and decodes another."""
    commit, schedule = arguments["commit"], arguments["schedule"]
    if commit is None or schedule is None or arguments["admit"] or not _is(arguments["finish"], ()):
        return False
    is_usual = arguments["settled_step"] is None and not arguments["partial_admission"]
    return is_usual and _commits_each(commit) and _decodes_each(schedule)


def one_each(execution: Execution) -> pb.ScheduleRequest:
    """Builds such a step, whose number is to be written by `renumber`."""
    step = pb.EngineStep(commits=_ONE_ACCEPTED, schedules=_ONE_TOKEN, execution=pb.Execution.ValueType(execution))
    return pb.ScheduleRequest(step=step)


def renumber(request: pb.ScheduleRequest, number: int) -> None:
    """Makes a step another one that says the same, with all before it settled."""
    step = request.step
    step.step, step.settled_step = number, number - 1


def answer(message: pb.StepOutcome) -> StepOutcome | StateLostError:
    """Reads an outcome; where sequences are lost, as the error that tells which."""
    outcome = StepOutcome(message)
    return StateLostError.of(outcome) if message.lost_sequence_ids else outcome


def notice(message: pb.Notice) -> Notice | None:
    """Reads a notice; None: a kind that this version does not know."""
    try:
        kind = NoticeKind(message.kind)
    except ValueError:
        return None
    return Notice(kind, usage_from_wire(message.usage))


def list_sequences(session_id: int, page_size: int, page_token: str) -> Call[tuple[SequencePage, str]]:
    """Builds ListSequences for one page; the result carries the next page's token, empty after the last."""
    request = pb.ListSequencesRequest(session_id=session_id, page_size=page_size, page_token=page_token)
    return rpc.LIST_SEQUENCES.call(request, _page)


def _applied(response: pb.StepResponse) -> StepOutcome:
    outcome = answer(response.outcome)
    if isinstance(outcome, StateLostError):
        raise outcome
    return outcome


def _write_step(step: pb.EngineStep, number: int, execution: Execution, arguments: StepArguments) -> None:
    settled, commit, schedule = arguments["settled_step"], arguments["commit"], arguments["schedule"]
    step.step = _whole(number, "step")
    step.settled_step = number - 1 if settled is None else _whole(settled, "settled_step")
    step.execution = pb.Execution.ValueType(execution)
    step.partial_admission = arguments["partial_admission"]
    if not _is(arguments["finish"], ()):
        merge_columns(step, {6: pack(arguments["finish"], "finish", FIXED64)})
    if commit is not None:
        _write_commits(step.commits, commit)
    if arguments["admit"]:
        _write_admissions(step.admissions, arguments["admit"])
    if schedule is not None:
        _write_schedules(step.schedules, schedule)


def _write_commits(message: pb.Commits, commits: Commits) -> None:
    if _commits_each(commits):
        message.MergeFrom(_ONE_ACCEPTED)
        return
    columns = {
        2: pack(commits.accepted_tokens, "commit.accepted_tokens", FIXED32),
        3: pack(commits.hash_rows, "commit.hash_rows", FIXED32),
        4: pack(commits.boundary_tokens, "commit.boundary_tokens", FIXED64),
    }
    if commits.sequence_ids is ALL_RUNNING:
        message.all_running = True
    else:
        columns[1] = pack(commits.sequence_ids, "commit.sequence_ids", FIXED64)
    merge_columns(message, columns)
    message.prefix_hashes.extend(commits.prefix_hashes)


def _write_schedules(message: pb.Schedules, schedules: Schedules) -> None:
    if _decodes_each(schedules):
        message.MergeFrom(_ONE_TOKEN)
        return
    columns = {
        2: pack(schedules.num_tokens, "schedule.num_tokens", FIXED32),
        3: pack(schedules.num_draft_tokens, "schedule.num_draft_tokens", FIXED32),
    }
    if schedules.sequence_ids is ALL_RUNNING:
        message.all_running = True
    else:
        columns[1] = pack(schedules.sequence_ids, "schedule.sequence_ids", FIXED64)
    merge_columns(message, columns)


def _commits_each(commits: Commits) -> bool:
    tokens, rows = commits.accepted_tokens, commits.hash_rows
    return commits.sequence_ids is ALL_RUNNING and _is(tokens, 1) and _is(rows, ())


def _decodes_each(schedules: Schedules) -> bool:
    tokens, drafts = schedules.num_tokens, schedules.num_draft_tokens
    return schedules.sequence_ids is ALL_RUNNING and _is(tokens, 1) and _is(drafts, 0)


def _is(values: ArrayLike, wanted: int | tuple[()]) -> bool:
    """Tells whether an argument is exactly a number or nothing; arrays are not looked into."""
    return type(values) is type(wanted) and values == wanted


def _write_admissions(message: pb.Admissions, rows: Sequence[Admission]) -> None:
    columns = {
        1: pack([row.sequence_id for row in rows], "admit.sequence_id", FIXED64),
        2: pack([row.prompt_tokens for row in rows], "admit.prompt_tokens", FIXED64),
        3: _max_hit_tokens(rows),
    }
    if any(row.prefix_hashes for row in rows):
        columns[4] = pack([0, *accumulate(len(row.prefix_hashes) for row in rows)], "admit.prefix_hashes", FIXED32)
        for row in rows:
            message.prefix_hashes.extend(row.prefix_hashes)
    imports = [(index, row.imported) for index, row in enumerate(rows) if row.imported is not None]
    if imports:
        columns[5] = pack([index for index, _ in imports], "admit", FIXED32)
        columns[6] = pack([state.num_tokens for _, state in imports], "admit.imported.num_tokens", FIXED64)
        message.imported_blocks.CopyFrom(refs_to_wire(BlockRefs.concat([state.block for _, state in imports])))
    namespaces = [row.namespace for row in rows]
    if any(namespaces):
        message.namespaces.extend(namespaces[:1] if len(set(namespaces)) == 1 else namespaces)
    merge_columns(message, columns)


def _max_hit_tokens(rows: Sequence[Admission]) -> bytes:
    """Writes the bounds of hits; a hit never covers the whole prompt, so that is no bound."""
    if all(row.max_hit_tokens is None for row in rows):
        return b""
    bounds = [row.prompt_tokens if row.max_hit_tokens is None else row.max_hit_tokens for row in rows]
    return pack(bounds, "admit.max_hit_tokens", FIXED64)


def _whole(value: int, name: str) -> int:
    if not 0 <= value < 2**64:
        raise ValueError(f"{name}: {value} is no number from 0 to 2**64 - 1")
    return value


def _page(response: pb.ListSequencesResponse) -> tuple[SequencePage, str]:
    # The columns are read from the message's bytes, in which nothing may stand before them.
    response.ClearField("incarnation")
    columns = columns_of_message(response, _PAGE)
    page = SequencePage(
        sequence_ids=columns[2],
        num_computed_tokens=columns[3],
        num_accepted_tokens=columns[4],
        outstanding_tokens=columns[5],
        outstanding_draft_tokens=columns[6],
        scheduled_steps=columns[7],
        running_columns=columns[8] - 1,
        table_lengths=columns[9],
        entry_offsets=columns[10],
        entry_columns=columns[11],
        entry_blocks=BlockRefs(columns[12], columns[13]),
        namespaces=tuple(response.namespaces),
        last_step=response.last_step,
        settled_step=response.settled_step,
    )
    return page, response.next_page_token
