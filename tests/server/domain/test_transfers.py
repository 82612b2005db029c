"""Guarantee: lent blocks are pinned exactly as long as a transfer lasts, whatever becomes of session and references."""

import time

import numpy as np
import pytest

from statepool.errors import BlockBusyError, QuotaExceededError, SessionFencedError, TransferNotFoundError
from statepool_server.answers import Usage
from statepool_server.integrity import check_integrity
from statepool_server.journal.encoding import decode, encode
from statepool_server.pool import Pool, PoolConfig
from statepool_server.transfers import LendingTerms, TransferEnd
from statepool_server.view import PoolState
from statepool_server.work import MemoryWork
from support.small_pool import ALICE, BLOCK_COUNT, BLOCK_TOKENS, BOB, cached, ids, small_pool

TOKEN = b"t" * 16
TERMS = LendingTerms(TOKEN, "decode", 50)


def _reloaded(pool: Pool) -> Pool:
    other = Pool(PoolConfig(block_count=BLOCK_COUNT, block_tokens=BLOCK_TOKENS))
    other.load(decode(encode(pool.dump()), PoolState))
    return other


def _blocks_in_use(pool: Pool) -> tuple[int, int, int]:
    usage: Usage = pool.usage()
    return usage.held, usage.releasing, usage.busy


def test_pins_outlive_references_and_session() -> None:
    """A lent block that was freed is released when the last transfer of it ends, and not before."""
    pool = small_pool()
    refs = pool.allocate(*ALICE, 2)
    first, second = pool.lend_blocks(*ALICE, refs, TERMS), pool.lend_blocks(*ALICE, refs[:1], TERMS)
    pool.delete_session(*ALICE)
    assert _blocks_in_use(pool) == (0, 2, 2)

    pool.complete_transfer(first.transfer_id, TOKEN)
    assert _blocks_in_use(pool) == (0, 1, 1)
    check_integrity(pool)
    pool.cancel_transfer(second.transfer_id, TOKEN)

    assert _blocks_in_use(pool) == (0, 0, 0)
    assert pool.usage().free == BLOCK_COUNT - 1
    check_integrity(pool)


def test_lent_cached_blocks_are_not_evicted() -> None:
    """A committed block that is lent is not handed out again while it is, and evictable after."""
    pool = small_pool()
    refs = cached(pool, b"a")
    transfer = pool.lend_blocks(*BOB, refs, TERMS)
    others = pool.allocate(*ALICE, BLOCK_COUNT - 2)
    assert set(ids(others)).isdisjoint(ids(refs))
    assert pool.check_transfer(transfer.transfer_id, TOKEN) is transfer

    assert pool.expire_transfers(49) == []
    assert pool.expire_transfers(50) == [transfer.transfer_id]
    assert ids(pool.allocate(*ALICE, 1)) == ids(refs)
    with pytest.raises(TransferNotFoundError, match=TransferEnd.EXPIRED.value):
        pool.check_transfer(transfer.transfer_id, TOKEN)
    check_integrity(pool)


def test_the_next_end_is_told() -> None:
    """The moment at which time matters next is the earliest of leases and transfers."""
    pool = small_pool()
    assert pool.next_expiry_ns == 100
    pool.lend_blocks(*ALICE, pool.allocate(*ALICE, 1), TERMS)
    assert pool.next_expiry_ns == 50
    pool.prolong_leases(150)
    assert pool.next_expiry_ns == 150


def test_ends_in_any_order() -> None:
    """The next end is that of what is still open, also in a pool that was read back; notes of others do not pile up."""
    pool = small_pool()
    refs = pool.allocate(*ALICE, 1)
    ends = [30, 10, 10, 20]
    opened = [pool.lend_blocks(*ALICE, refs, LendingTerms(TOKEN, "", end)).transfer_id for end in ends]
    for one in (pool, _reloaded(pool)):
        for transfer_id, next_ns in zip(opened[1:], [10, 20, 30], strict=True):
            one.cancel_transfer(transfer_id, TOKEN)
            assert one.next_expiry_ns == next_ns
            check_integrity(one)
    for _ in range(1000):
        pool.complete_transfer(pool.lend_blocks(*ALICE, refs, TERMS).transfer_id, TOKEN)
    assert pool.transfers.note_count < 100
    assert pool.expire_transfers(30) == opened[:1]
    check_integrity(pool)


def test_what_ends_costs_no_more_than_itself() -> None:
    """Many large transfers that end at once do not each count all others: that held the event loop up for seconds."""
    pool = Pool(PoolConfig(block_count=5000, block_tokens=BLOCK_TOKENS))
    pool.create_session("alice", 100, False, 0)
    refs = pool.allocate(*ALICE, 4096)
    opened = [pool.lend_blocks(*ALICE, refs, TERMS).transfer_id for _ in range(300)]

    started = time.monotonic()
    assert pool.expire_transfers(50) == opened
    assert time.monotonic() - started < 1.0

    check_integrity(pool)


def test_a_written_block_is_not_lent() -> None:
    """A block with a writer is refused, and a refusal opens nothing."""
    pool = small_pool()
    refs = pool.allocate(*ALICE, 1)
    pin = pool.pin_write(*ALICE, refs)
    before = pool.digest()
    with pytest.raises(BlockBusyError):
        pool.lend_blocks(*ALICE, refs, TERMS)
    assert pool.digest() == before
    pool.unpin(pin)
    pool.create_session("alice", 100, True, 0)
    with pytest.raises(SessionFencedError):
        pool.lend_blocks(*ALICE, refs, TERMS)


def test_on_whose_account() -> None:
    """A lent block counts once beside what is held: while no session of the tenant holds it, and its transfer lasts."""
    pool = small_pool()
    one = (pool.create_session("one", 100, False, 0, "acme")[0].session_id, 1)
    two = (pool.create_session("two", 100, False, 0, "acme")[0].session_id, 1)
    refs = pool.allocate(*one, 3)
    first, second = pool.lend_blocks(*one, refs[:2], TERMS), pool.lend_blocks(*one, refs[1:], TERMS)
    pool.lend_blocks(*ALICE, pool.allocate(*ALICE, 1), TERMS)
    assert pool.held_by("acme") == 3
    pool.free(*one, refs[:2])
    assert pool.held_by("acme") == 3
    pool.allocate(*two, 1)
    pool.delete_session(*one)
    assert (pool.held_by("acme"), pool.held_by("globex")) == (4, 0)

    other = _reloaded(pool)
    assert other.held_by("acme") == 4
    pool.complete_transfer(first.transfer_id, TOKEN)
    assert pool.held_by("acme") == 3
    pool.complete_transfer(second.transfer_id, TOKEN)
    assert pool.held_by("acme") == 1


def test_a_token_decides_what_a_pool_answers() -> None:
    """Two pools are alike only if who knows the transfers' tokens is."""
    pools = [small_pool(), small_pool()]
    for pool, token in zip(pools, (TOKEN, bytes(16)), strict=True):
        pool.lend_blocks(*ALICE, pool.allocate(*ALICE, 1), LendingTerms(token, "decode", 50))

    assert pools[0].digest() != pools[1].digest()


def test_room() -> None:
    """As many transfers are open as may be, and no more."""
    pool = Pool(PoolConfig(block_count=BLOCK_COUNT, block_tokens=BLOCK_TOKENS, max_transfers=1))
    pool.create_session("alice", 100, False, 0)
    refs = pool.allocate(*ALICE, 1)
    transfer = pool.lend_blocks(*ALICE, refs, TERMS)
    with pytest.raises(QuotaExceededError):
        pool.lend_blocks(*ALICE, refs, TERMS)
    pool.cancel_transfer(transfer.transfer_id, TOKEN)
    assert pool.lend_blocks(*ALICE, refs, TERMS).transfer_id == transfer.transfer_id + 1


def test_states_are_read_back() -> None:
    """A pool that was written down and read back behaves alike: open transfers, ended ones, and the next number."""
    pool = small_pool()
    refs = pool.allocate(*ALICE, 2)
    kept, ended = pool.lend_blocks(*ALICE, refs, TERMS), pool.lend_blocks(*ALICE, refs, TERMS)
    pool.complete_transfer(ended.transfer_id, TOKEN)

    other = _reloaded(pool)

    assert other.digest() == pool.digest()
    for one in (pool, other):
        one.complete_transfer(ended.transfer_id, TOKEN)
        one.cancel_transfer(kept.transfer_id, TOKEN)
        assert one.lend_blocks(*ALICE, refs, TERMS).transfer_id == 3
        check_integrity(one)
    assert other.digest() == pool.digest()


def test_a_damaged_journal_ends_transfers() -> None:
    """Where nothing can be proven, nothing is lent any more."""
    pool = small_pool()
    transfer = pool.lend_blocks(*ALICE, pool.allocate(*ALICE, 1), TERMS)

    pool.distrust(pool.blocks.generations.copy(), 100)

    with pytest.raises(TransferNotFoundError):
        pool.check_transfer(transfer.transfer_id, TOKEN)
    assert pool.usage().busy == 0


@pytest.mark.parametrize("freed", [False, True])
def test_a_failed_reception_frees_its_blocks(freed: bool) -> None:
    """Blocks that were to be filled are stale for whoever has seen them, also where their owner dropped them before."""
    pool = small_pool()
    refs = pool.allocate(*ALICE, 3)
    work = MemoryWork(ALICE[0], pool.pin_write(*ALICE, refs), received_blocks=refs.block_ids)
    if freed:
        pool.free(*ALICE, refs[:2])

    pool.finish_work(work, succeeded=False)

    assert pool.usage().free == BLOCK_COUNT - 1
    assert np.array_equal(pool.blocks.generations[refs.block_ids], refs.generations + 1)
    check_integrity(pool)
