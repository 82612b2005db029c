"""Guarantee: a block table costs the same however long it is: its nulls are not stored."""

import numpy as np
import pytest

from statepool_server.pool import Pool
from statepool_server.sequences.tables import KEPT
from support.small_pool import ALICE
from support.steps import Admit, Commit, Engine, Run, engine_pool, ints, pairs_of

COLUMNS = 10**6
SPEC = 3


def entries(pool: Pool) -> tuple[int, int]:
    """Counts the columns of sequence 1, and those that hold a block."""
    table = pool.sequences.tables[ALICE[0]]
    tables = table.tables.take(table.slots(ints([1]), "test"))
    return int(tables.lengths()[0]), len(tables.entries()[0])


def test_a_prompt_of_four_million_tokens() -> None:
    """Its first pass takes 1 + num_spec blocks and no more, and later ones keep two columns beside them at most."""
    pool = engine_pool(num_spec=SPEC)
    engine = Engine(pool, ALICE)

    engine.step(admit=[Admit(1, 4 * COLUMNS)], run=[Run(1, 4 * COLUMNS)])
    assert entries(pool) == (COLUMNS + SPEC, 1 + SPEC)
    engine.step(commit=[Commit(1)], run=[Run(1, 4 * COLUMNS)])
    assert entries(pool) == (2 * COLUMNS + SPEC, 2 + SPEC)
    engine.step(commit=[Commit(1)], run=[Run(1, 4, 3)])

    assert entries(pool)[1] <= KEPT + 1 + SPEC
    assert pool.usage().held == entries(pool)[1]


@pytest.mark.parametrize("accepted", [1, 2, 4])
def test_many_passes(accepted: int) -> None:
    """Blocks of a long generation are given back as it goes on, however many drafts are accepted."""
    pool = engine_pool(num_spec=SPEC)
    engine = Engine(pool, ALICE)
    engine.step(admit=[Admit(1, 7)], run=[Run(1, 7)])
    engine.step(commit=[Commit(1)], run=[Run(1, 4, 3)])

    for _ in range(200):
        engine.step(commit=[Commit(1, accepted)], run=[Run(1, 4, 3)])
        assert entries(pool)[1] <= KEPT + 1 + SPEC

    assert entries(pool)[0] >= 200 * accepted // 4


def test_an_imported_state_far_in() -> None:
    """It stands in its column, alone."""
    pool = engine_pool()
    engine = Engine(pool, ALICE)
    (block,) = pairs_of(pool.allocate(*ALICE, 1))

    engine.step(admit=[Admit(1, 4 * COLUMNS + 1, imported=(4 * COLUMNS - 1, block))])

    assert entries(pool) == (COLUMNS, 1)


def test_sequences_are_stored_as_a_few_numbers() -> None:
    """Whatever their lengths, the columns of a session's sequences take less than 300 bytes each."""
    pool = engine_pool(block_count=2000, num_spec=SPEC, max_sequences=1000)
    engine = Engine(pool, ALICE)

    engine.step(admit=[Admit(i, COLUMNS) for i in range(256)], run=[Run(i, COLUMNS) for i in range(256)])

    table = pool.sequences.tables[ALICE[0]]
    columns = [*vars(table).values(), *(getattr(table.tables, name) for name in type(table.tables).__slots__)]
    assert sum(column.nbytes for column in columns if isinstance(column, np.ndarray)) / 256 < 300
