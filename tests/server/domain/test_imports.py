"""Guarantee: a sequence may begin with a state from another pool, in a block that is its session's alone."""

from collections.abc import Callable

import pytest

from statepool.errors import (
    BlockBusyError,
    BlockIndexOutOfRangeError,
    BlockInSequenceError,
    BlockNotOwnedError,
    BlockNotWritableError,
    GenerationStaleError,
    StatepoolError,
)
from statepool_server.pool import Pool
from support.small_pool import ALICE, BOB, commit
from support.steps import Admit, Commit, Engine, Run, copy_rows, engine_pool, pairs_of

Pair = tuple[int, int]


def own(pool: Pool) -> Pair:
    """Allocates a block for Alice."""
    return pairs_of(pool.allocate(*ALICE, 1))[0]


def test_an_unaligned_state_is_computed_further_in_its_block() -> None:
    """The block stands in the column of the last token; a pass that ends there needs no copy."""
    pool = engine_pool(num_spec=2)
    engine = Engine(pool, ALICE)
    block = own(pool)

    outcome = engine.step(admit=[Admit(1, 8, imported=(6, block))], run=[Run(1, 2)])

    assert (outcome.admitted_tokens.tolist(), outcome.admitted_blocks.tolist()) == ([6], [block[0]])
    assert engine.table(1)[:2] == [0, block[0]]
    assert (copy_rows(outcome.pre_copies), outcome.zeroed_blocks.tolist()) == ([], [])
    assert engine.step(commit=[Commit(1, 1, 8, b"b")]).published == 1


def test_a_state_is_copied_to_where_the_pass_ends() -> None:
    """As the state of a hit; the imported block is retired when the tokens have passed it."""
    pool = engine_pool()
    engine = Engine(pool, ALICE)
    block = own(pool)

    outcome = engine.step(admit=[Admit(1, 12, imported=(4, block))], run=[Run(1, 5)])
    (copied,) = copy_rows(outcome.pre_copies)
    engine.step(commit=[Commit(1)], run=[Run(1, 1)])

    assert copied[1:6] == (0, 2, 0, block[0], block[0])
    assert engine.table(1)[0] == 0
    assert block[0] in pool.blocks.free()


def test_the_reference_passes_to_the_sequence() -> None:
    """The session cannot free the block any more, and the finish does."""
    pool = engine_pool()
    engine = Engine(pool, ALICE)
    refs = pool.allocate(*ALICE, 1)

    engine.step(admit=[Admit(1, 8, imported=(3, pairs_of(refs)[0]))])
    with pytest.raises(BlockInSequenceError):
        pool.free(*ALICE, refs)
    engine.step(finish=[1])

    assert pool.usage().free == 9


def foreign(pool: Pool) -> Pair:
    """Gives a block of Bob's."""
    return pairs_of(pool.allocate(*BOB, 1))[0]


def committed(pool: Pool) -> Pair:
    """Gives a block that can be found."""
    refs = pool.allocate(*ALICE, 1)
    commit(pool, ALICE, refs, [b"a"])
    return pairs_of(refs)[0]


def retained(pool: Pool) -> Pair:
    """Gives a block with two references."""
    refs = pool.allocate(*ALICE, 1)
    pool.retain(*ALICE, refs)
    return pairs_of(refs)[0]


def running(pool: Pool) -> Pair:
    """Gives a block of a sequence, whose step is the first."""
    return pairs_of(Engine(pool, ALICE).step(admit=[Admit(9)], run=[Run(9)]).tables.blocks)[0]


def read(pool: Pool) -> Pair:
    """Gives a block that is being read."""
    refs = pool.allocate(*ALICE, 1)
    pool.pin_read(*ALICE, refs)
    return pairs_of(refs)[0]


def freed(pool: Pool) -> Pair:
    """Gives a block that was freed."""
    refs = pool.allocate(*ALICE, 1)
    pool.free(*ALICE, refs)
    return pairs_of(refs)[0]


def null(pool: Pool) -> Pair:
    """Gives the null block."""
    return 0, 1


@pytest.mark.parametrize(
    ("block_of", "error"),
    [
        (foreign, BlockNotOwnedError),
        (committed, BlockNotWritableError),
        (retained, BlockNotWritableError),
        (running, BlockInSequenceError),
        (read, BlockBusyError),
        (freed, GenerationStaleError),
        (null, BlockIndexOutOfRangeError),
    ],
)
def test_a_block_that_others_may_use_is_refused(block_of: Callable[[Pool], Pair], error: type[StatepoolError]) -> None:
    """It must be the session's, uncommitted, with one reference, in no sequence and idle; else nothing happens."""
    pool = engine_pool()
    engine = Engine(pool, ALICE)
    block = block_of(pool)
    engine.last_step = 1 if block_of is running else 0
    before = pool.digest()

    with pytest.raises(error) as refused:
        engine.step(admit=[Admit(1, 8, imported=(3, block))])

    assert refused.value.field == "admissions.imported_blocks"
    assert pool.digest() == before
