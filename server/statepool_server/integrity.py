"""Proves that a pool's columns, counters and indexes tell one story."""

import numpy as np

from statepool_server.blocks import BlockState
from statepool_server.holdings import NOBODY
from statepool_server.recency import Ids
from statepool_server.sequences.table import SequenceTable
from statepool_server.sequences.tables import NO_COLUMN
from statepool_server.view import PoolView


class IntegrityError(RuntimeError):
    """The pool contradicts itself; the message says how."""


def check_integrity(pool: PoolView) -> None:
    """Checks conservation: every block in exactly one place, and every count equal to what it counts.

    Takes time in proportion to the pool.

    Raises:
        IntegrityError: A contradiction.
    """
    _check_places(pool)
    _check_holdings(pool)
    _check_prefixes(pool)
    _check_sequences(pool)
    _check_quarantine(pool)
    _check_lent(pool)


def _check_places(pool: PoolView) -> None:
    blocks = pool.blocks
    ids = np.arange(1, blocks.block_count, dtype=np.int64)
    states = blocks.states(ids)
    _same("free stack and blocks of even generation", np.sort(blocks.free()), ids[states == BlockState.FREE])
    evictable = blocks.evictable.block_ids()
    _same("recency log and evictable blocks", np.sort(evictable), ids[states == BlockState.EVICTABLE])
    _true("the recency log's count", len(evictable) == len(blocks.evictable))
    _true("evictable blocks can be found", bool(blocks.listed[evictable].all()))
    _true("the count of held blocks", blocks.held_count == np.count_nonzero(blocks.references))
    _true("the count of busy blocks", blocks.busy_count == np.count_nonzero(blocks.busy))
    blank = np.append(ids[states == BlockState.FREE], 0)
    columns = {"reference": blocks.references, "commit": blocks.committed, "pin": blocks.busy, "fence": blocks.fences}
    for name, column in columns.items():
        _true(f"no {name} of a blank block", not column[blank].any())


def _check_holdings(pool: PoolView) -> None:
    blocks, holdings = pool.blocks, pool.holdings
    references = holdings.held.copy()
    for session in pool.sessions:
        for block, count in session.shared.items():
            _true("a shared reference", count > 0 and holdings.holder[block] != session.session_id)
            references[block] += count
        _true("a session's count of blocks", session.block_count == len(holdings.blocks_of(session)))
    _same("references and holdings", references, blocks.references)
    _same("held counts and holders", np.flatnonzero(holdings.held > 0), np.flatnonzero(holdings.holder != NOBODY))
    live = [NOBODY, *(session.session_id for session in pool.sessions)]
    _true("every holder lives", bool(np.isin(holdings.holder, live).all()))
    owned = np.flatnonzero((blocks.references > 0) & ~blocks.committed)
    _same("owners of uncommitted blocks", holdings.held[owned], blocks.references[owned])


def _check_prefixes(pool: PoolView) -> None:
    blocks, prefixes = pool.blocks, pool.prefixes
    names = list(prefixes.items())
    named = np.array([block for _, _, block in names], np.int64)
    _same("prefix index and listed blocks", named, np.flatnonzero(blocks.listed))
    _true("the count of prefixes", len(prefixes) == len(names))
    _true("every name finds its block", all(prefixes.find_all(space, [value]) == [i] for space, value, i in names))
    _true("listed blocks are committed", bool(blocks.committed[blocks.listed].all()))
    _true("committed blocks have no writer", bool((blocks.busy[blocks.committed] >= 0).all()))


def _check_sequences(pool: PoolView) -> None:
    blocks, holdings, in_sequences = pool.blocks, pool.holdings, np.zeros_like(pool.holdings.in_sequences)
    live = {session.session_id: session for session in pool.sessions}
    _true("sequences belong to live sessions", set(pool.sequences.tables) <= set(live))
    for session_id, table in pool.sequences.tables.items():
        held = table.held_blocks()
        _true("block tables name allocated blocks", bool((held > 0).all() and (blocks.generations[held] & 1).all()))
        own = np.bincount(held, minlength=blocks.block_count)
        ids = np.flatnonzero(own)
        _true("a session holds its sequences' blocks", bool((holdings.count(live[session_id], ids) >= own[ids]).all()))
        _check_tables(table)
        in_sequences += own
    _same("references of block tables", in_sequences, holdings.in_sequences)
    _true("the count of sequences", pool.sequences.count == sum(map(len, pool.sequences.tables.values())))


def _check_quarantine(pool: PoolView) -> None:
    blocks, fences = pool.blocks, list(pool.attachments.fences.values())
    around = np.concatenate([np.empty(0, np.int64), *(fence.block_ids for fence in fences)])
    standing = np.bincount(around, minlength=blocks.block_count) + blocks.condemned
    _same("fences and blocks in quarantine", standing, blocks.fences)
    _true("the count of blocks in quarantine", blocks.quarantined_count == np.count_nonzero(blocks.fences))
    _true("the count of condemned blocks", blocks.condemned_count == np.count_nonzero(blocks.condemned))
    fenced = (blocks.fences > 0) & ~blocks.condemned
    _true("blocks in quarantine are not committed", not blocks.committed[fenced].any())
    _true("condemned blocks are committed", bool(blocks.committed[blocks.condemned].all()))
    _true("condemned blocks cannot be found", not blocks.listed[blocks.condemned].any())
    writers = set(pool.attachments.writers())
    _true("fences wait for somebody who may write", all(fence.awaited and fence.awaited <= writers for fence in fences))


def _check_lent(pool: PoolView) -> None:
    transfers = pool.transfers
    pinned = np.concatenate([np.empty(0, np.int64), *(each.pin.readers for each in transfers.live.values())])
    _same("pins of transfers and lent blocks", np.bincount(pinned, minlength=len(transfers.lent)), transfers.lent)
    by_tenant = [transfers.lent_by(tenant) for tenant in {each.tenant for each in transfers.live.values()}]
    every = np.unique(np.concatenate([np.empty(0, np.int64), *by_tenant]))
    _same("what tenants lend and lent blocks", every, np.flatnonzero(transfers.lent))
    ends = [each.terms.expires_ns for each in transfers.live.values()]
    _true("the next end of a transfer", transfers.next_expiry_ns == min(ends, default=None))


def _check_tables(table: SequenceTable) -> None:
    slots = table.in_order()
    chosen = table.tables.take(slots)
    rows, columns, named = chosen.entries()
    kept = chosen.kept_columns[chosen.tail_start != NO_COLUMN]
    starts = chosen.tail_start[chosen.tail_start != NO_COLUMN]
    _true("kept columns come before the tail", bool((kept < starts[:, None]).all()))
    _true("a column stands once in a table", len(set(zip(rows.tolist(), columns.tolist(), strict=True))) == len(rows))
    _true("a block stands once in a table", len(set(zip(rows.tolist(), named.tolist(), strict=True))) == len(rows))


def _same(what: str, left: Ids, right: Ids) -> None:
    if not np.array_equal(left, right):
        raise IntegrityError(f"{what} differ: {np.setxor1d(left, right)[:8].tolist()}")


def _true(what: str, holds: bool) -> None:
    if not holds:
        raise IntegrityError(f"{what}: does not hold")
