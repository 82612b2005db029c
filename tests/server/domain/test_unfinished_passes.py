"""Guarantee: only states that were written are found; an aborted, rejected or unnamed one never is (rule 4)."""

import pytest

from statepool.errors import BlockInSequenceError, BoundaryNotWrittenError
from statepool_server.pool import Pool
from support.small_pool import ALICE, BOB, commit
from support.steps import Admit, Commit, Engine, Run, engine_pool


def found(pool: Pool) -> list[bytes]:
    """Lists the hashes under which blocks are found."""
    return [value for _, value, _ in pool.prefixes.items()]


@pytest.mark.parametrize("by_worker", [False, True])
def test_an_aborted_pass_leaves_nothing_to_find(by_worker: bool) -> None:
    """The blocks of a sequence that ends between schedule and commit become blank, full as they may be."""
    pool = engine_pool()
    engine = Engine(pool, ALICE, by_worker=by_worker)
    engine.step(admit=[Admit(1, 9, [b"a", b"b"])], run=[Run(1, 8)])

    engine.step(finish=[1])

    assert found(pool) == []
    assert pool.usage().free == 9


def test_scheduling_publishes_nothing() -> None:
    """The hashes of an admission are looked up, not kept; a second sequence of the same prompt computes it again."""
    pool = engine_pool()
    engine = Engine(pool, ALICE)
    engine.step(admit=[Admit(1, 9, [b"a", b"b"])], run=[Run(1, 8)])

    outcome = engine.step(admit=[Admit(2, 9, [b"a", b"b"])])

    assert outcome.admitted_tokens.tolist() == [0]


def test_a_commit_without_a_hash_publishes_nothing() -> None:
    """A boundary that the engine does not name is reached, and its block becomes blank at the end."""
    pool = engine_pool()
    engine = Engine(pool, ALICE)
    engine.step(admit=[Admit(1, 4)], run=[Run(1, 4)])

    outcome = engine.step(commit=[Commit(1)], finish=[1])

    assert (outcome.published, found(pool), pool.usage().free) == (0, [], 9)


def test_a_sequence_that_is_committed_and_finished_at_once_is_found() -> None:
    """Commits come before finishes, so the last state of a request is not lost."""
    pool = engine_pool()
    engine = Engine(pool, ALICE)
    engine.step(admit=[Admit(1, 4)], run=[Run(1, 4)])

    outcome = engine.step(commit=[Commit(1, 1, 4, b"a")], finish=[1])

    assert (outcome.published, found(pool), pool.usage().evictable) == (1, [b"a"], 1)


@pytest.mark.parametrize(
    ("first", "tokens", "drafts", "accepted", "boundary"),
    [(6, 1, 0, 1, 4), (2, 4, 3, 1, 4), (2, 4, 3, 3, 8), (8, 1, 0, 1, 8), (4, 3, 0, 1, 7), (2, 4, 3, 3, 0)],
    ids=["passed over", "drafts rejected", "beyond", "before the pass", "unaligned", "nought"],
)
def test_a_boundary_without_its_state_is_refused(
    first: int, tokens: int, drafts: int, accepted: int, boundary: int
) -> None:
    """A hash is taken only for a boundary that the accepted tokens have reached in this very commit."""
    pool = engine_pool(num_spec=3)
    engine = Engine(pool, ALICE)
    engine.step(admit=[Admit(1, first)], run=[Run(1, first)])
    engine.step(commit=[Commit(1)], run=[Run(1, tokens, drafts)])
    before = pool.digest()

    with pytest.raises(BoundaryNotWrittenError) as refused:
        engine.step(commit=[Commit(1, accepted, boundary, b"a")])

    assert (refused.value.field, refused.value.metadata["row"]) == ("commits.boundary_tokens", "0")
    assert pool.digest() == before


def test_a_copied_state_is_found_when_the_server_has_copied_it() -> None:
    """Between the answer's plan and the end of its copies, a lookup does not find the boundary."""
    pool = engine_pool(num_spec=3)
    engine = Engine(pool, ALICE)
    engine.step(admit=[Admit(1, 2)], run=[Run(1, 2)])
    engine.step(commit=[Commit(1)], run=[Run(1, 4, 3)])

    outcome = engine.plan(commit=[Commit(1, 2, 4, b"a")])

    assert outcome.work is not None
    assert (outcome.published, pool.lookup(*BOB, "m", [b"a"])) == (0, None)
    pool.finish_work(outcome.work)
    assert pool.lookup(*BOB, "m", [b"a"]) is not None


def test_copies_of_a_session_that_ended_publish_nothing() -> None:
    """What the server still copies for a deleted session is not found, and its blocks become blank."""
    pool = engine_pool(num_spec=3)
    engine = Engine(pool, ALICE)
    engine.step(admit=[Admit(1, 2)], run=[Run(1, 2)])
    engine.step(commit=[Commit(1)], run=[Run(1, 4, 3)])
    outcome = engine.plan(commit=[Commit(1, 2, 4, b"a")])

    pool.delete_session(*ALICE)
    assert pool.usage().releasing > 0
    assert outcome.work is not None
    pool.finish_work(outcome.work)

    assert (found(pool), pool.usage().free) == ([], 9)


def test_the_first_block_of_a_hash_stays() -> None:
    """Of two sequences that reach the same boundary, the second keeps its block to itself until it ends."""
    pool = engine_pool()
    engine = Engine(pool, ALICE)
    engine.step(admit=[Admit(1, 4), Admit(2, 4)], run=[Run(1, 4), Run(2, 4)])

    outcome = engine.step(commit=[Commit(1, 1, 4, b"a"), Commit(2, 1, 4, b"a")])
    (first,), (second,) = engine.table(1), engine.table(2)
    engine.step(finish=[1, 2])

    assert outcome.published == 1
    assert pool.blocks.evictable.block_ids().tolist() == [first]
    assert second in pool.blocks.free()


def test_blocks_of_a_table_are_committed_by_steps_only() -> None:
    """CommitBlocks cannot claim a boundary for a block that a sequence is still writing."""
    pool = engine_pool()
    outcome = Engine(pool, ALICE).step(admit=[Admit(1, 4)], run=[Run(1, 4)])

    with pytest.raises(BlockInSequenceError):
        commit(pool, ALICE, outcome.tables.blocks, [b"a"])

    assert found(pool) == []
