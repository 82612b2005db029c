"""Guarantee: sequences move their states exactly as the reference engine's align mode does."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from statepool_server.integrity import check_integrity
from statepool_server.pool import Pool, PoolConfig
from statepool_server.sequences.outcomes import StepOutcome
from statepool_server.sequences.requests import Admissions, Commits, Schedules, StepRequest
from statepool_server.sequences.rules import Moves
from support.traces import NAMES, SCENARIOS, Ask, Move, Renaming, asks, expected_move, prompt_hashes

ALICE = (1, 1)


def ints(*values: int) -> NDArray[np.int64]:
    """Makes a column."""
    return np.array(values, np.int64)


def request_of(number: int, sequence: int, ask: Ask, request: dict[str, Any], block_tokens: int) -> StepRequest:
    """Builds the step."""
    hashes = prompt_hashes(request, block_tokens)
    commits, admissions, schedules = Commits(), Admissions(), Schedules()
    if ask.accepted is None:
        admissions = Admissions(
            ints(sequence), ints(len(request["prompt_tokens"])), ints(2**40), ints(0, len(hashes)), hashes, ("m",)
        )
    else:
        boundary, value = ask.boundary or (0, b"")
        rows = ints(0) if boundary else ints()
        commits = Commits(ints(sequence), ints(ask.accepted), rows, ints(boundary)[: len(rows)], (value,)[: len(rows)])
    if ask.num_tokens:
        schedules = Schedules(ints(sequence), ints(ask.num_tokens), ints(ask.num_drafts))
    finishes = ints() if ask.num_tokens else ints(sequence)
    return StepRequest(
        number, number - 1, commits=commits, admissions=admissions, schedules=schedules, finishes=finishes
    )


def move_of(moves: Moves) -> Move | None:
    """Reads the one copy of a phase."""
    assert len(moves) <= 1
    columns = (moves.src_columns, moves.dst_columns, moves.token_biases)
    blocks = (moves.src_blocks, moves.temporal_blocks, moves.dst_blocks)
    return tuple(int(column[0]) for column in (*columns, *blocks)) if len(moves) else None  # type: ignore[return-value]


def named(move: Move | None, renaming: Renaming) -> Move | None:
    """Writes a copy with the reference's block ids."""
    return None if move is None else (*move[:3], *(renaming[block] for block in move[3:]))  # type: ignore[return-value]


def block_table(pool: Pool, sequence: int) -> list[int]:
    """Writes a block table out, nulls included."""
    table = pool.sequences.tables[ALICE[0]]
    row = table.tables.take(table.slots(ints(sequence), "test"))
    written = np.zeros(int(row.lengths()[0]), np.int64)
    _, columns, blocks = row.entries()
    written[columns] = blocks
    return written.tolist()


def apply(pool: Pool, request: StepRequest) -> StepOutcome:
    """Applies a step and tells that its copies are done."""
    outcome = pool.step(*ALICE, request)
    if outcome.work is not None:
        pool.finish_work(outcome.work)
    check_integrity(pool)
    return outcome


@pytest.mark.parametrize("scenario", SCENARIOS, ids=NAMES)
@pytest.mark.parametrize("separate", [False, True], ids=["one message", "commits apart"])
def test_trace(scenario: dict[str, Any], separate: bool) -> None:
    """Tables, copies, counters, hits and free counts are the reference's, up to a renaming of blocks."""
    block_tokens, spec = scenario["block_size"], scenario["num_speculative_tokens"]
    pool = Pool(PoolConfig(block_count=scenario["num_blocks"], block_tokens=block_tokens, num_spec=spec))
    pool.create_session("", 100, False, 0)
    number, renaming = 0, Renaming()

    for sequence, request in enumerate(scenario["requests"]):
        for ask in asks(request, block_tokens):
            number += 1
            step = request_of(number, sequence, ask, request, block_tokens)
            if separate and ask.committed is not None:
                committed = apply(pool, step._replace(schedules=Schedules(), finishes=ints()))
                assert counters(pool, sequence) == expected_counters(ask.committed)
                number += 1
                outcome = apply(pool, step._replace(step=number, settled_step=number - 1, commits=Commits()))
            else:
                committed = outcome = apply(pool, step)
            usage = pool.usage()
            if ask.committed is None:
                assert outcome.admitted_tokens.tolist() == [request["num_cached_tokens"]]
            else:
                expected = expected_move(ask.committed["postprocess_copy"])
                assert named(move_of(committed.post_copies), renaming) == expected
            if ask.expected is None:
                assert usage.free + usage.evictable == request["free_blocks_after_finish"]
                continue
            renaming.expect(block_table(pool, sequence), ask.expected["block_table"])
            assert named(move_of(outcome.pre_copies), renaming) == expected_move(ask.expected["preprocess_copy"])
            assert usage.free + usage.evictable == ask.expected["free_blocks"]


def counters(pool: Pool, sequence: int) -> tuple[int, int]:
    """Reads the tokens computed and accepted."""
    table = pool.sequences.tables[ALICE[0]]
    (slot,) = table.slots(ints(sequence), "test").tolist()
    return int(table.num_computed[slot]), int(table.num_accepted[slot])


def expected_counters(step: dict[str, int]) -> tuple[int, int]:
    """Computes them from a step of the trace."""
    written = step["num_computed_tokens"] + step["num_scheduled_tokens"] - step["num_draft_tokens"]
    return written + step["num_accepted_tokens"] - 1, step["next_num_accepted_tokens"]
