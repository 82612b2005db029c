"""Engine steps written row by row, and an engine that numbers and settles them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from statepool.refs import BlockRefs
from statepool_server.integrity import check_integrity
from statepool_server.pool import Pool, PoolConfig
from statepool_server.sequences.outcomes import StepOutcome
from statepool_server.sequences.requests import ALL_ROOM, Admissions, Commits, Schedules, StepRequest
from statepool_server.sequences.rules import Moves

NO_BOUND = 2**40
"""Most tokens of a hit where it does not matter."""

CopyRow = tuple[int, int, int, int, int, int, int]
"""Row, source and destination column, bias, and the blocks of source, temporal source and destination."""


@dataclass(frozen=True)
class Commit:
    """The result of a pass."""

    sequence: int
    accepted: int = 1
    boundary: int = 0
    prefix_hash: bytes = b""
    """Empty: none."""


@dataclass(frozen=True)
class Admit:
    """A sequence to begin."""

    sequence: int
    prompt_tokens: int = 1
    hashes: Sequence[bytes] = ()
    max_hit_tokens: int = NO_BOUND
    namespace: str = "m"
    imported: tuple[int, tuple[int, int]] | None = None
    """Tokens, and block and generation."""


@dataclass(frozen=True)
class Run:
    """A pass to come."""

    sequence: int
    tokens: int = 1
    drafts: int = 0


def ints(values: Sequence[int]) -> NDArray[np.int64]:
    """Makes a column."""
    return np.array(values, np.int64)


def refs_of(pairs: Sequence[tuple[int, int]]) -> BlockRefs:
    """Pairs blocks with generations."""
    return BlockRefs.of([block for block, _ in pairs], [generation for _, generation in pairs])


def commits_of(rows: Sequence[Commit], *, all_running: bool = False) -> Commits:
    """Writes results as columns."""
    hashed = [(row, commit) for row, commit in enumerate(rows) if commit.prefix_hash]
    return Commits(
        None if all_running else ints([row.sequence for row in rows]),
        ints([row.accepted for row in rows]),
        ints([row for row, _ in hashed]),
        ints([commit.boundary for _, commit in hashed]),
        [commit.prefix_hash for _, commit in hashed],
    )


def admissions_of(rows: Sequence[Admit]) -> Admissions:
    """Writes sequences to begin as columns."""
    imports = [(row, admit.imported) for row, admit in enumerate(rows) if admit.imported]
    return Admissions(
        ints([row.sequence for row in rows]),
        ints([row.prompt_tokens for row in rows]),
        ints([row.max_hit_tokens for row in rows]),
        ints(np.cumsum([0, *(len(row.hashes) for row in rows)]).tolist()),
        [value for row in rows for value in row.hashes],
        [row.namespace for row in rows],
        ints([row for row, _ in imports]),
        ints([tokens for _, (tokens, _) in imports]),
        refs_of([ref for _, (_, ref) in imports]),
    )


def schedules_of(rows: Sequence[Run], *, all_running: bool = False) -> Schedules:
    """Writes passes to come as columns."""
    return Schedules(
        None if all_running else ints([row.sequence for row in rows]),
        ints([row.tokens for row in rows]),
        ints([row.drafts for row in rows]),
    )


def copy_rows(moves: Moves) -> list[CopyRow]:
    """Reads planned copies row by row."""
    columns = (moves.rows, moves.src_columns, moves.dst_columns, moves.token_biases)
    blocks = (moves.src_blocks, moves.temporal_blocks, moves.dst_blocks)
    return list(zip(*(column.tolist() for column in (*columns, *blocks)), strict=True))


def block_table(pool: Pool, session_id: int, sequence: int) -> list[int]:
    """Writes a block table out, nulls included."""
    table = pool.sequences.tables[session_id]
    row = table.tables.take(table.slots(ints([sequence]), "test"))
    written = np.zeros(int(row.lengths()[0]), np.int64)
    _, columns, blocks = row.entries()
    written[columns] = blocks
    return written.tolist()


def engine_pool(block_count: int = 10, num_spec: int = 0, max_sequences: int = 100) -> Pool:
    """Builds a pool of four tokens a block, with the sessions of Alice and Bob."""
    pool = Pool(PoolConfig(block_count, 4, num_spec=num_spec, max_sequences=max_sequences))
    pool.create_session("alice", 100, False, 0)
    pool.create_session("bob", 200, False, 0)
    return pool


def pairs_of(refs: BlockRefs) -> list[tuple[int, int]]:
    """Lists blocks with their generations."""
    return list(zip(refs.block_ids.tolist(), refs.generations.tolist(), strict=True))


def publish(engine: "Engine", sequence: int, prefix_hash: bytes) -> None:
    """Runs a sequence of one full block, commits it under a hash and finishes it, so that the block is evictable."""
    engine.step(admit=[Admit(sequence, 4)], run=[Run(sequence, 4)])
    engine.step(commit=[Commit(sequence, 1, 4, prefix_hash)], finish=[sequence])


class Engine:
    """A session's engine: numbers its steps, and confirms each when the next is asked unless told otherwise.

    Attributes:
        last_step: Number of its last step.
    """

    def __init__(self, pool: Pool, session: tuple[int, int], *, by_worker: bool = False) -> None:
        self._pool = pool
        self._session = session
        self._by_worker = by_worker
        self.last_step = 0

    def plan(
        self,
        *,
        commit: Sequence[Commit] = (),
        finish: Sequence[int] = (),
        admit: Sequence[Admit] = (),
        run: Sequence[Run] = (),
        settled: int | None = None,
        partial: bool = False,
        room: int = ALL_ROOM,
    ) -> StepOutcome:
        """Asks for a step, and leaves its work to the caller."""
        step = self.last_step + 1
        request = StepRequest(
            step,
            self.last_step if settled is None else settled,
            self._by_worker,
            partial,
            commits_of(commit),
            ints(finish),
            admissions_of(admit),
            schedules_of(run),
            room,
        )
        outcome = self._pool.step(*self._session, request)
        self.last_step = step
        check_integrity(self._pool)
        return outcome

    def step(
        self,
        *,
        commit: Sequence[Commit] = (),
        finish: Sequence[int] = (),
        admit: Sequence[Admit] = (),
        run: Sequence[Run] = (),
        settled: int | None = None,
        partial: bool = False,
        room: int = ALL_ROOM,
    ) -> StepOutcome:
        """Asks for a step and does its work."""
        outcome = self.plan(
            commit=commit, finish=finish, admit=admit, run=run, settled=settled, partial=partial, room=room
        )
        if outcome.work is not None:
            self._pool.finish_work(outcome.work)
            check_integrity(self._pool)
        return outcome

    def table(self, sequence: int) -> list[int]:
        """Writes a block table out, nulls included."""
        return block_table(self._pool, self._session[0], sequence)
