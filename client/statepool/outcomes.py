"""What a server answers about sequences, as columns: outcomes of engine steps, and pages of block tables."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from statepool.columns import FIXED32, FIXED64, columns_of_message
from statepool.copies import CopyPlan
from statepool.descriptions import PoolUsage
from statepool.refs import BlockRefs
from statepool.v1 import sequence_pb2 as pb
from statepool.wire import usage_from_wire

_ADMISSIONS = {1: FIXED64, 2: FIXED32}
_TABLES = {1: FIXED32, 2: FIXED32, 3: FIXED32, 4: FIXED64}
_COPIES = dict.fromkeys(range(1, 8), FIXED32)


@dataclass(frozen=True, slots=True, eq=False)
class AdmissionResults:
    """Where admitted sequences begin: one row per admission, in their order.

    A step with ``partial_admission`` may leave out the last ones: those are not admitted.
    """

    num_computed_tokens: NDArray[np.int64]
    """Tokens that need no computing, ``[n]``."""
    block_ids: NDArray[np.int64]
    """Block that holds the state after them, 0 where a sequence starts from nothing, ``[n]``."""

    def __len__(self) -> int:
        return len(self.num_computed_tokens)


@dataclass(frozen=True, slots=True, eq=False)
class TableChanges:
    """Changed parts of block tables: one row per row of the schedules whose running column or blocks changed."""

    rows: NDArray[np.int64]
    """Row of the schedules, ``[n]``."""
    running_columns: NDArray[np.int64]
    """Its running column, ``[n]``."""
    block_ids: NDArray[np.int64]
    """Blocks of the running column and of the ``num_spec`` columns after it, ``[n, 1 + num_spec]``."""
    generations: NDArray[np.int64]
    """Their generations, ``[n, 1 + num_spec]``."""

    def blocks(self, index: int) -> BlockRefs:
        """Returns the refs of the running column and of the columns after it, ``[1 + num_spec]``.

        Args:
            index: Which of the n changed rows.
        """
        return BlockRefs(self.block_ids[index], self.generations[index])

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True, eq=False)
class StepCopies:
    """Copies of one phase. They see the memory as it was before the phase, and no two have the same destination."""

    rows: NDArray[np.int64]
    """Row of the commits (post-copies) or of the schedules (pre-copies), ``[n]``."""
    src_columns: NDArray[np.int64]
    """Column to copy from, ``[n]``."""
    dst_columns: NDArray[np.int64]
    """Column to copy to; the same as in src_columns: a shift in place, ``[n]``."""
    token_biases: NDArray[np.int64]
    """Rows to shift conv states by; the temporal state comes from column src_columns + token_biases, ``[n]``."""
    src_block_ids: NDArray[np.int64]
    """Block to copy conv and opaque states from, ``[n]``."""
    temporal_src_block_ids: NDArray[np.int64]
    """Block to copy temporal states from, ``[n]``."""
    dst_block_ids: NDArray[np.int64]
    """Block to copy to, ``[n]``."""

    def plan(self) -> CopyPlan:
        """Makes the plan that an attached worker gives to its copy engine (`Execution.WORKER`)."""
        return CopyPlan(self.src_block_ids, self.dst_block_ids, self.token_biases, self.temporal_src_block_ids)

    def __len__(self) -> int:
        return len(self.rows)


class StepOutcome:
    """What became of an engine step. Columns are read from the answer when they are first asked for."""

    def __init__(self, message: pb.StepOutcome) -> None:
        self._message = message

    @classmethod
    def from_bytes(cls, data: bytes) -> "StepOutcome":
        """Reads an outcome that `to_bytes` wrote.

        Raises:
            ValueError: The bytes are no outcome.
        """
        try:
            return cls(pb.StepOutcome.FromString(data))
        except DecodeError as error:
            raise ValueError("not the bytes of a step's outcome") from error

    def to_bytes(self) -> bytes:
        """Writes the outcome, so that a scheduler can pass it on to its workers (`Execution.WORKER`)."""
        return self._message.SerializeToString()

    @property
    def step(self) -> int:
        """Its number."""
        return self._message.step

    @property
    def digest(self) -> int:
        """Digest of everything that the steps of the session have decided so far, and of the pool's counts.

        Servers that got the same messages in the same order answer the same digests.
        """
        return self._message.digest

    @property
    def published_blocks(self) -> int:
        """Blocks that became findable since the last step."""
        return self._message.published_blocks

    @cached_property
    def admissions(self) -> AdmissionResults:
        """Where the admitted sequences begin."""
        columns = columns_of_message(self._message.admissions, _ADMISSIONS)
        return AdmissionResults(columns[1], columns[2])

    @cached_property
    def tables(self) -> TableChanges:
        """Running columns and blocks that changed."""
        columns = columns_of_message(self._message.tables, _TABLES)
        rows = len(columns[1])
        shape = rows, len(columns[3]) // rows if rows else 1
        return TableChanges(columns[1], columns[2], columns[3].reshape(shape), columns[4].reshape(shape))

    @cached_property
    def post_copies(self) -> StepCopies:
        """Copies of the commits: done before anything else of the step."""
        return StepCopies(*columns_of_message(self._message.post_copies, _COPIES).values())

    @cached_property
    def zeroed_block_ids(self) -> NDArray[np.int64]:
        """Blocks filled with zeros: the first running blocks of sequences that start from nothing, ``[n]``."""
        return np.array(self._message.zeroed_block_ids, np.int64)

    @cached_property
    def pre_copies(self) -> StepCopies:
        """Copies of the schedules: done when the post-copies and the zeroing are."""
        return StepCopies(*columns_of_message(self._message.pre_copies, _COPIES).values())

    @property
    def lost_sequence_ids(self) -> tuple[int, ...]:
        """Sequences whose states are gone, since the server could not copy or zero them; see `StateLostError`."""
        return tuple(self._message.lost_sequence_ids)

    @property
    def is_planned(self) -> bool:
        """Whether there are copies or zeroing that the worker has to do (`Execution.WORKER`); else all is done."""
        return self._message.is_planned

    @cached_property
    def usage(self) -> PoolUsage:
        """Blocks and sessions after the step."""
        return usage_from_wire(self._message.usage)

    def __repr__(self) -> str:
        message = self._message
        return (
            f"<StepOutcome {self.step}: {len(message.admissions.block_ids)} admitted, "
            f"{len(message.tables.rows)} tables changed, {len(message.zeroed_block_ids)} blocks zeroed, "
            f"{len(message.post_copies.rows)} + {len(message.pre_copies.rows)} copies, digest {self.digest:#018x}>"
        )


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class SequencePage:
    """A page of `list_sequences`: columns, one row per sequence, in the order of their ids.

    The block tables are sparse: `entry_columns` and `entry_blocks` hold the columns that are not null, those of row i
    from ``entry_offsets[i]`` to ``entry_offsets[i + 1]``.
    """

    sequence_ids: NDArray[np.int64]
    """The sequences, ``[n]``."""
    num_computed_tokens: NDArray[np.int64]
    """Tokens that each state has seen, ``[n]``."""
    num_accepted_tokens: NDArray[np.int64]
    """Accepted tokens of the last commit that have not been shifted away: where the worker finds the state, ``[n]``."""
    outstanding_tokens: NDArray[np.int64]
    """Tokens of the outstanding step, drafts included; 0: there is none, ``[n]``."""
    outstanding_draft_tokens: NDArray[np.int64]
    """Drafted tokens among them, ``[n]``."""
    scheduled_steps: NDArray[np.int64]
    """Step in which each was scheduled last; 0: never, ``[n]``."""
    running_columns: NDArray[np.int64]
    """Running column; -1: never scheduled, ``[n]``."""
    table_lengths: NDArray[np.int64]
    """Columns of each table, nulls included, ``[n]``."""
    entry_offsets: NDArray[np.int64]
    """Start of each table's entries, and the end of the last, ``[n + 1]``."""
    entry_columns: NDArray[np.int64]
    """Columns that are not null, ascending within a table, ``[entries]``."""
    entry_blocks: BlockRefs
    """Their blocks, ``[entries]``."""
    namespaces: tuple[str, ...]
    """Namespace of each sequence, ``[n]``."""
    last_step: int
    """Number of the session's last step that was applied; 0: none."""
    settled_step: int
    """Number of the last step that was confirmed as settled."""

    def table(self, row: int) -> NDArray[np.int64]:
        """Writes out the block table of a row: block ids, 0 where a column is null, ``[table_lengths[row]]``."""
        entries = slice(self.entry_offsets[row], self.entry_offsets[row + 1])
        table = np.zeros(self.table_lengths[row], np.int64)
        table[self.entry_columns[entries]] = self.entry_blocks.block_ids[entries]
        return table

    def __len__(self) -> int:
        return len(self.sequence_ids)

    def __repr__(self) -> str:
        outstanding = np.count_nonzero(self.outstanding_tokens)
        return f"<SequencePage [{len(self)}] {outstanding} outstanding, last step {self.last_step}>"
