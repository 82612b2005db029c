"""Guarantee: an error of one row names the field and that row, whatever rows are right beside it."""

from typing import Any

import pytest

from statepool.errors import (
    BadFieldError,
    BlockBusyError,
    BoundaryNotWrittenError,
    GenerationStaleError,
    SequenceExistsError,
    SequenceNotFoundError,
    StatepoolError,
    StepOutOfOrderError,
)
from support.small_pool import ALICE
from support.steps import Admit, Commit, Engine, Run, engine_pool, ints

HASHES = [b"1", b"2", b"3"]


@pytest.mark.parametrize(
    ("asked", "error", "field", "row"),
    [
        ({"commit": [Commit(1), Commit(9)]}, SequenceNotFoundError, "commits.sequence_ids", 1),
        ({"commit": [Commit(1), Commit(2), Commit(1)]}, BadFieldError, "commits.sequence_ids", 2),
        ({"commit": [Commit(1), Commit(3)]}, StepOutOfOrderError, "commits.sequence_ids", 1),
        ({"commit": [Commit(1), Commit(2, 2)]}, BadFieldError, "commits.accepted_tokens", 1),
        ({"commit": [Commit(1), Commit(2, 0)]}, BadFieldError, "commits.accepted_tokens", 1),
        ({"commit": [Commit(2), Commit(1, 1, 4, b"x")]}, BoundaryNotWrittenError, "commits.boundary_tokens", 1),
        ({"finish": [1, 9]}, SequenceNotFoundError, "finishes", 1),
        ({"finish": [1, 1]}, BadFieldError, "finishes", 1),
        ({"admit": [Admit(4), Admit(1)]}, SequenceExistsError, "admissions.sequence_ids", 1),
        ({"admit": [Admit(4), Admit(4)]}, BadFieldError, "admissions.sequence_ids", 1),
        ({"admit": [Admit(4), Admit(-1)]}, BadFieldError, "admissions.sequence_ids", 1),
        ({"admit": [Admit(4), Admit(5, 0)]}, BadFieldError, "admissions.prompt_tokens", 1),
        ({"admit": [Admit(4), Admit(5, 11, HASHES)]}, BadFieldError, "admissions.hash_offsets", 1),
        ({"admit": [Admit(4), Admit(5, max_hit_tokens=-1)]}, BadFieldError, "admissions.max_hit_tokens", 1),
        ({"admit": [Admit(4, imported=(3, (1, 9)))]}, GenerationStaleError, "admissions.imported_blocks", 0),
        ({"run": [Run(3), Run(9)]}, SequenceNotFoundError, "schedules.sequence_ids", 1),
        ({"run": [Run(3), Run(3)]}, BadFieldError, "schedules.sequence_ids", 1),
        ({"run": [Run(3), Run(1)]}, StepOutOfOrderError, "schedules.sequence_ids", 1),
        ({"finish": [1], "run": [Run(3), Run(1)]}, SequenceNotFoundError, "schedules.sequence_ids", 1),
        ({"admit": [Admit(4)], "run": [Run(3), Run(4, 0)]}, BadFieldError, "schedules.num_tokens", 1),
        ({"admit": [Admit(4)], "run": [Run(3), Run(4, 2**31)]}, BadFieldError, "schedules.num_tokens", 1),
        ({"admit": [Admit(4)], "run": [Run(3), Run(4, 3, 1)]}, BadFieldError, "schedules.num_draft_tokens", 1),
        ({"admit": [Admit(4)], "run": [Run(3), Run(4, 4, 3)]}, BadFieldError, "schedules.num_draft_tokens", 1),
    ],
)
def test_row(asked: dict[str, Any], error: type[StatepoolError], field: str, row: int) -> None:
    """Sequences 1 and 2 have an outstanding pass, 3 has none, and no other is there; two drafts at most."""
    pool = engine_pool(num_spec=2)
    engine = Engine(pool, ALICE)
    engine.step(admit=[Admit(1, 3), Admit(2, 3), Admit(3)], run=[Run(1, 3), Run(2, 3)])
    before = pool.digest()

    with pytest.raises(error) as refused:
        engine.step(**asked)

    assert type(refused.value) is error
    assert (refused.value.field, refused.value.metadata["row"]) == (field, str(row))
    assert f"{field}[{row}]" in refused.value.message or error is BoundaryNotWrittenError
    assert pool.digest() == before


def test_row_of_a_busy_block_that_a_schedule_copies_from() -> None:
    """The row is that of the schedules, though only some of them copy.

    It was counted among the copies.
    """
    pool = engine_pool()
    engine = Engine(pool, ALICE)
    blocks = engine.step(admit=[Admit(1, 2), Admit(2, 4)], run=[Run(1, 2), Run(2, 4)]).tables.blocks
    pool.pin_write(*ALICE, blocks[1])

    with pytest.raises(BlockBusyError) as refused:
        engine.step(commit=[Commit(1), Commit(2)], run=[Run(1), Run(2)])

    assert (refused.value.field, refused.value.metadata["row"]) == ("schedules.sequence_ids", "1")


def test_row_of_a_busy_block_that_a_commit_copies_to() -> None:
    """The row is that of the commits, though only some of them copy.

    It was counted among the copies.
    """
    pool = engine_pool(block_count=20, num_spec=3)
    engine = Engine(pool, ALICE)
    engine.step(admit=[Admit(1, 1), Admit(2, 2)], run=[Run(1), Run(2, 2)])
    engine.step(commit=[Commit(1), Commit(2)], run=[Run(1), Run(2, 4, 3)])
    pool.pin_read(*ALICE, pool.blocks.refs(ints(engine.table(2)[:1])))

    with pytest.raises(BlockBusyError) as refused:
        engine.step(commit=[Commit(1), Commit(2, 2)])

    assert (refused.value.field, refused.value.metadata["row"]) == ("commits.sequence_ids", "1")
