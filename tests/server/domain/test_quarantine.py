"""Guarantee: a block that an attached writer may still write is neither free nor usable until it has answered."""

from collections.abc import Callable

import numpy as np
import pytest

from statepool.errors import AttachmentNotFoundError, BlockBusyError
from statepool_server.attachments import EVERY
from statepool_server.blocks import BlockState
from statepool_server.integrity import IntegrityError, check_integrity
from statepool_server.pool import Pool
from statepool_server.sequences.requests import Admissions, Commits, Schedules, StepRequest
from support.small_pool import ALICE, BLOCK_TOKENS, BOB, commit, small_pool

CAPACITY = 9
ALICE_AGAIN = (ALICE[0], 2)


def _attached(*, read_only: bool = False) -> tuple[Pool, int]:
    """Builds a pool with an attached process."""
    pool = small_pool()
    return pool, pool.attach(0, read_only).attachment_id


def _begin(pool: Pool, session: tuple[int, int], *, by_worker: bool = False) -> None:
    """Runs the first step of a session: one sequence, that fills a block."""
    one, tokens = np.array([1]), np.array([BLOCK_TOKENS])
    admissions = Admissions(one, 2 * tokens, tokens, np.array([0, 0]), (), ("m",))
    request = StepRequest(1, by_worker=by_worker, admissions=admissions, schedules=Schedules(one, tokens, one - 1))
    work = pool.step(*session, request).work
    if work is not None:
        pool.finish_work(work)


def _go_on() -> StepRequest:
    """Writes the second step: the block is full, its state is to be found, and the next is begun."""
    one, tokens = np.array([1]), np.array([BLOCK_TOKENS])
    commits = Commits(one, one, np.array([0]), tokens, (b"h",))
    return StepRequest(2, settled_step=1, commits=commits, schedules=Schedules(one, tokens, one - 1))


def test_blocks_of_a_deleted_session_wait_for_every_writer() -> None:
    """They are free only when the last process that was attached at that moment has answered."""
    pool, first = _attached()
    second = pool.attach(0, False).attachment_id
    pool.attach(0, True)
    pool.allocate(*ALICE, 3)

    pool.delete_session(*ALICE)
    late = pool.attach(0, False).attachment_id

    assert (pool.usage().quarantined, pool.usage().releasing, pool.usage().free) == (3, 3, CAPACITY - 3)
    assert [fence.number for fence in pool.attachments.unanswered(second)] == [1]
    assert pool.attachments.unanswered(late) == []
    assert pool.quiesced(first, 1) == 0
    assert pool.quiesced(second, 1) == 3
    assert pool.usage().free == CAPACITY
    check_integrity(pool)


def test_lost_blocks_stay_on_the_tenants_account() -> None:
    """As long as a worker may write them; a tenant that opens and deletes sessions takes no more than it may have."""
    pool, attachment = _attached()
    for lost in (0, 2):
        session, _ = pool.create_session("", 100, False, 0, "acme")
        pool.allocate(session.session_id, 1, 2)
        assert (pool.held_by("acme"), pool.held_by("globex")) == (lost + 2, 0)
        pool.delete_session(session.session_id, 1)
        assert pool.held_by("acme") == lost + 2

    pool.release_quarantine(attachment)

    assert pool.held_by("acme") == 0


def test_without_writers_nothing_is_quarantined() -> None:
    """Blocks of an expired session are free at once, though somebody reads."""
    pool, _ = _attached(read_only=True)
    pool.allocate(*ALICE, 3)

    pool.expire_sessions(100)

    assert (pool.usage().quarantined, pool.usage().free) == (0, CAPACITY)


def test_committed_blocks_are_not_quarantined() -> None:
    """What is immutable is no writer's any more, and stays findable."""
    pool, _ = _attached()
    refs = pool.allocate(*ALICE, 2)
    commit(pool, ALICE, refs[0], [b"a"])

    pool.delete_session(*ALICE)

    assert (pool.usage().quarantined, pool.usage().evictable) == (1, 1)


def test_a_new_owner_waits() -> None:
    """After a take-over blocks are held, but cannot be used, and what is freed is not free, until the answer came."""
    pool, worker = _attached()
    refs = pool.allocate(*ALICE, 3)
    pool.create_session("alice", 100, True, 0)
    uses: list[Callable[[], object]] = [
        lambda: pool.pin_read(*ALICE_AGAIN, refs),
        lambda: pool.pin_write(*ALICE_AGAIN, refs),
        lambda: pool.pin_copy(*ALICE_AGAIN, refs[:1], refs[1:2], refs[:1]),
        lambda: commit(pool, ALICE_AGAIN, refs[:1], [b"a"]),
    ]

    for use in uses:
        with pytest.raises(BlockBusyError) as refused:
            use()
        assert refused.value.retry_after is not None
    pool.free(*ALICE_AGAIN, refs[2])

    listed = pool.list_blocks(0, CAPACITY, [BlockState.QUARANTINED])
    assert listed.reference_counts.tolist() == [1, 1, 0]
    assert (pool.usage().held, pool.usage().releasing, pool.usage().free) == (2, 1, CAPACITY - 3)
    assert pool.quiesced(worker, 1) == 3
    assert pool.usage().free == CAPACITY - 2
    for use in uses[2:]:
        use()


def test_a_fence_names_the_epoch_that_is_over() -> None:
    """Passes of the new owner are none of its business; losing the session again puts a second one up."""
    pool, worker = _attached()
    pool.allocate(*ALICE, 2)

    pool.create_session("alice", 100, True, 0)
    pool.delete_session(*ALICE_AGAIN)

    fences = pool.attachments.unanswered(worker)
    assert [(fence.session_id, fence.epoch) for fence in fences] == [ALICE, ALICE_AGAIN]
    assert pool.quiesced(worker, 1) == 0
    assert pool.quiesced(worker, 1) == 0
    assert pool.quiesced(worker, 2) == 2


@pytest.mark.parametrize("end", ["detach", "release", "release every"])
def test_other_ends_of_quarantine(end: str) -> None:
    """A process that is gone needs not answer, and an operator may answer for it."""
    pool, worker = _attached()
    pool.allocate(*ALICE, 2)
    pool.delete_session(*ALICE)

    cleared = pool.detach(worker) if end == "detach" else pool.release_quarantine(worker if end == "release" else EVERY)

    assert (cleared, pool.usage().free) == (2, CAPACITY)
    assert (end == "detach") == (not pool.attachments.live)
    with pytest.raises(AttachmentNotFoundError):
        pool.detach(99)


def test_a_block_that_is_copied_waits_for_both() -> None:
    """The end of the copy does not release it, nor does the answer alone."""
    for copy_ends_first in (True, False):
        pool, worker = _attached()
        pin = pool.pin_write(*ALICE, pool.allocate(*ALICE, 1))
        pool.delete_session(*ALICE)
        ends: list[Callable[[], object]] = [lambda: pool.unpin(pin), lambda: pool.quiesced(worker, 1)]  # noqa: B023

        for end in ends if copy_ends_first else reversed(ends):
            assert pool.usage().free == CAPACITY - 1
            end()

        assert pool.usage().free == CAPACITY


@pytest.mark.parametrize("by_worker", [False, True])
def test_steps_of_a_new_owner_wait(by_worker: bool) -> None:
    """Blocks in tables are quarantined with the others; the next step is refused until the answer, then applied."""
    pool, worker = _attached()
    _begin(pool, ALICE, by_worker=by_worker)
    pool.create_session("alice", 100, True, 0)
    before = pool.digest()

    with pytest.raises(BlockBusyError) as refused:
        pool.step(*ALICE_AGAIN, _go_on())

    assert refused.value.retry_after is not None
    assert pool.digest() == before
    pool.quiesced(worker, 1)
    assert pool.step(*ALICE_AGAIN, _go_on()).step == 2
    check_integrity(pool)


def test_blocks_that_wait_for_settlement_are_quarantined() -> None:
    """A finished sequence's block that its last step may still write is not free when its session goes."""
    pool, worker = _attached()
    _begin(pool, ALICE, by_worker=True)
    pool.step(*ALICE, StepRequest(2, settled_step=0, finishes=np.array([1])))

    pool.delete_session(*ALICE)

    assert pool.usage().quarantined == 1
    pool.quiesced(worker, 1)
    assert pool.usage().free == CAPACITY


def test_others_go_on() -> None:
    """A session that has lost nothing allocates and steps while blocks of another are in quarantine."""
    pool, _ = _attached()
    pool.allocate(*ALICE, 3)
    pool.delete_session(*ALICE)

    _begin(pool, BOB)
    pool.step(*BOB, _go_on())

    assert len(pool.allocate(*BOB, pool.usage().free)) > 0
    assert pool.usage().quarantined == 3


def _lose_count(pool: Pool) -> None:
    pool.blocks.quarantined_count -= 1


def _lose_fence(pool: Pool) -> None:
    del pool.attachments.fences[1]


def _lose_attachment(pool: Pool) -> None:
    pool.attachments.live.clear()


def _commit_quarantined(pool: Pool) -> None:
    pool.blocks.committed[1] = True


@pytest.mark.parametrize("spoil", [_lose_count, _lose_fence, _lose_attachment, _commit_quarantined])
def test_integrity(spoil: Callable[[Pool], None]) -> None:
    """The check finds a contradiction between blocks, fences and attachments."""
    pool, _ = _attached()
    pool.allocate(*ALICE, 2)
    pool.delete_session(*ALICE)

    spoil(pool)

    with pytest.raises(IntegrityError):
        check_integrity(pool)
