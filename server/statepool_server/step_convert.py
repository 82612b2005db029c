"""Engine steps on the wire: messages to checked columns, and outcomes to messages."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from statepool.columns import FIXED32, FIXED64, columns_of_message, message_of_columns
from statepool.errors import BadFieldError, BatchTooLargeError, ColumnLengthMismatchError
from statepool.v1 import sequence_pb2 as pb
from statepool_server.answers import SequenceRows
from statepool_server.convert import Convert
from statepool_server.limits import Limits
from statepool_server.sequences.outcomes import StepOutcome, TableChanges
from statepool_server.sequences.requests import (
    ALL_ROOM,
    COMMIT_EACH,
    DECODE_EACH,
    Admissions,
    Commits,
    Schedules,
    StepRequest,
)
from statepool_server.sequences.rules import Moves
from statepool_server.sequences.tables import NO_INTS

Column = NDArray[np.int64]
Dtypes = Mapping[int, "np.dtype[np.generic]"]

_COMMITS: Dtypes = {1: FIXED64, 2: FIXED32, 3: FIXED32, 4: FIXED64}
_ADMISSIONS: Dtypes = {1: FIXED64, 2: FIXED64, 3: FIXED64, 4: FIXED32, 5: FIXED32, 6: FIXED64}
_SCHEDULES: Dtypes = {1: FIXED64, 2: FIXED32, 3: FIXED32}
_NO_COMMITS, _NO_ADMISSIONS, _NO_SCHEDULES = Commits(), Admissions(), Schedules()
_UNBOUNDED = 2**62
_EXECUTIONS = frozenset(pb.Execution.values())
_WIRE_COMMIT_EACH = pb.Commits(accepted_tokens=[1], all_running=True)
_WIRE_DECODE_EACH = tuple(
    pb.Schedules(num_tokens=[1], num_draft_tokens=drafts, all_running=True) for drafts in ([0], [])
)
_NO_DRAFTS = np.zeros(1, np.int64)


class StepConvert:
    """Reads engine steps; every method raises an `InvalidArgumentError` that names the field."""

    def __init__(self, convert: Convert, limits: Limits) -> None:
        self._convert = convert
        self._limits = limits

    def step(self, message: pb.EngineStep, block_room: int = ALL_ROOM) -> StepRequest:
        """Reads a step.

        Args:
            message: The step.
            block_room: How many more blocks the session may hold after it.
        """
        if message.execution not in _EXECUTIONS:
            raise BadFieldError(f"execution: {message.execution} is not known", field="execution")
        if not message.step < 2**63:
            raise BadFieldError(f"step: {message.step} is not below 2**63", field="step")
        return StepRequest(
            step=message.step,
            settled_step=message.settled_step,
            by_worker=message.execution == pb.EXECUTION_WORKER,
            partial_admission=message.partial_admission,
            block_room=block_room,
            commits=self._commits(message.commits) if message.HasField("commits") else _NO_COMMITS,
            finishes=self._finishes(message.finishes) if message.finishes else NO_INTS,
            admissions=self._admissions(message.admissions) if message.HasField("admissions") else _NO_ADMISSIONS,
            schedules=self._schedules(message.schedules) if message.HasField("schedules") else _NO_SCHEDULES,
        )

    def _finishes(self, ids: Sequence[int]) -> Column:
        self._convert.batch(len(ids), "finishes")
        return np.fromiter(ids, np.uint64, len(ids)).astype(np.int64)

    def _commits(self, message: pb.Commits) -> Commits:
        if message == _WIRE_COMMIT_EACH:
            return COMMIT_EACH
        columns = columns_of_message(message, _COMMITS)
        ids, rows, boundaries = self._rows(columns[1], message.all_running, "commits"), columns[3], columns[4]
        if not len(rows) and not len(message.prefix_hashes) and not len(boundaries):
            return Commits(ids, columns[2])
        hashes = self._convert.hashes(message.prefix_hashes, "commits.prefix_hashes")
        if not len(rows) == len(boundaries) == len(hashes):
            raise ColumnLengthMismatchError(
                f"commits: {len(rows)} hash_rows, {len(boundaries)} boundary_tokens, {len(hashes)} prefix_hashes",
                field="commits.hash_rows",
            )
        if len(rows) and (np.diff(rows) <= 0).any():
            raise BadFieldError("commits.hash_rows must rise", field="commits.hash_rows")
        return Commits(ids, columns[2], rows, boundaries, hashes)

    def _schedules(self, message: pb.Schedules) -> Schedules:
        if message in _WIRE_DECODE_EACH:
            return DECODE_EACH
        columns = columns_of_message(message, _SCHEDULES)
        drafts = columns[3] if len(columns[3]) else _NO_DRAFTS
        return Schedules(self._rows(columns[1], message.all_running, "schedules"), columns[2], drafts)

    def _rows(self, ids: Column, all_running: bool, name: str) -> Column | None:
        field = f"{name}.sequence_ids"
        self._convert.batch(len(ids), field)
        if not all_running:
            return ids
        if len(ids):
            raise BadFieldError(f"{field} must be empty with all_running", field=field)
        return None

    def _admissions(self, message: pb.Admissions) -> Admissions:
        columns = columns_of_message(message, _ADMISSIONS)
        ids, prompts, most, offsets, imports, imported_tokens = (columns[number] for number in _ADMISSIONS)
        self._convert.batch(len(ids), "admissions.sequence_ids")
        blocks = self._convert.refs(message.imported_blocks, "admissions.imported_blocks")
        _check_length(len(prompts), len(ids), "admissions.prompt_tokens")
        _check_length(len(imported_tokens), len(imports), "admissions.imported_tokens")
        _check_length(len(blocks), len(imports), "admissions.imported_blocks")
        if len(imports) and ((np.diff(imports) <= 0).any() or imports[-1] >= len(ids)):
            raise BadFieldError("admissions.import_rows must be rows, and rise", field="admissions.import_rows")
        return Admissions(
            sequence_ids=ids,
            prompt_tokens=prompts,
            max_hit_tokens=_broadcast(most, len(ids), "admissions.max_hit_tokens", _UNBOUNDED),
            hash_offsets=_offsets(offsets, len(ids), len(message.prefix_hashes)),
            prefix_hashes=self._hashes(message),
            namespaces=self._namespaces(message, len(ids)),
            import_rows=imports,
            imported_tokens=imported_tokens,
            imported_blocks=blocks,
        )

    def _hashes(self, message: pb.Admissions) -> list[bytes]:
        field, limit = "admissions.prefix_hashes", self._limits.max_step_hashes
        if len(message.prefix_hashes) > limit:
            raise BatchTooLargeError(
                f"{field} has {len(message.prefix_hashes)} hashes, more than {limit}", field=field, limit=limit
            )
        return self._convert.hashes(message.prefix_hashes, field)

    def _namespaces(self, message: pb.Admissions, rows: int) -> list[str]:
        field = "admissions.namespaces"
        names = [self._convert.name(name, field) for name in message.namespaces] or [""]
        if len(names) == 1:
            return names * rows
        _check_length(len(names), rows, field)
        return names


def _check_length(length: int, rows: int, field: str) -> None:
    if length != rows:
        raise ColumnLengthMismatchError(f"{field} has {length} values for {rows} rows", field=field)


def _broadcast(column: Column, rows: int, field: str, default: int) -> Column:
    if not len(column):
        return np.full(rows, default, np.int64)
    if len(column) == 1:
        return np.repeat(column, rows)
    _check_length(len(column), rows, field)
    return column


def _offsets(column: Column, rows: int, hashes: int) -> Column:
    if not len(column) and not hashes:
        return np.zeros(rows + 1, np.int64)
    _check_length(len(column), rows + 1, "admissions.hash_offsets")
    if column[0] != 0 or column[-1] != hashes or (np.diff(column) < 0).any():
        raise BadFieldError(
            f"admissions.hash_offsets must rise from 0 to the {hashes} hashes", field="admissions.hash_offsets"
        )
    return column


def outcome_to_wire(outcome: StepOutcome) -> pb.StepOutcome:
    """Writes what became of a step, without the usage."""
    message = pb.StepOutcome(step=outcome.step, digest=outcome.digest, published_blocks=outcome.published)
    if len(outcome.admitted_tokens):
        columns: dict[int, NDArray[np.generic]] = {
            1: outcome.admitted_tokens.astype(FIXED64),
            2: outcome.admitted_blocks.astype(FIXED32),
        }
        message.admissions.CopyFrom(message_of_columns(pb.AdmissionResults, columns))
    if len(outcome.tables.rows):
        message.tables.CopyFrom(_tables(outcome.tables))
    if len(outcome.post_copies.rows):
        message.post_copies.CopyFrom(_copies(outcome.post_copies))
    if len(outcome.zeroed_blocks):
        message.zeroed_block_ids.extend(outcome.zeroed_blocks.tolist())
    if len(outcome.pre_copies.rows):
        message.pre_copies.CopyFrom(_copies(outcome.pre_copies))
    if outcome.by_worker and outcome.moves_states:
        message.is_planned = True
    return message


def _tables(tables: TableChanges) -> pb.TableChanges:
    columns: dict[int, NDArray[np.generic]] = {
        1: tables.rows.astype(FIXED32),
        2: tables.running_columns.astype(FIXED32),
        3: tables.blocks.block_ids.astype(FIXED32),
        4: tables.blocks.generations.astype(FIXED64),
    }
    return message_of_columns(pb.TableChanges, columns)


def _copies(moves: Moves) -> pb.StepCopies:
    columns = (
        *(moves.rows, moves.src_columns, moves.dst_columns, moves.token_biases),
        *(moves.src_blocks, moves.temporal_blocks, moves.dst_blocks),
    )
    return message_of_columns(
        pb.StepCopies, {number: column.astype(FIXED32) for number, column in enumerate(columns, start=1)}
    )


def sequences_to_wire(rows: SequenceRows) -> pb.ListSequencesResponse:
    """Writes a page of sequences, without the incarnation and the next page's token."""
    wide: dict[int, Column] = {2: rows.sequence_ids, 3: rows.num_computed, 7: rows.scheduled_steps}
    wide[13] = rows.entries.generations
    narrow: dict[int, Column] = {
        4: rows.num_accepted,
        5: rows.outstanding_tokens,
        6: rows.outstanding_drafts,
        8: rows.running_ends,
        9: rows.table_lengths,
        10: rows.entry_offsets,
        11: rows.entry_columns,
        12: rows.entries.block_ids,
    }
    columns: dict[int, NDArray[np.generic]] = {number: column.astype(FIXED64) for number, column in wide.items()}
    columns |= {number: column.astype(FIXED32) for number, column in narrow.items()}
    message = message_of_columns(pb.ListSequencesResponse, columns)
    message.namespaces.extend(rows.namespaces)
    message.last_step, message.settled_step = rows.last_step, rows.settled_step
    return message
