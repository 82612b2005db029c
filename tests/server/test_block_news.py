"""Guarantee: a snapshot taken at any moment and the batches behind it fold to what the pool's prefix index holds."""

import asyncio
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statepool.calls import watching
from statepool.v1 import pool_pb2 as pb
from statepool_server.pool import Pool, PoolConfig
from statepool_server.service import block_news
from statepool_server.service.block_news import BlockNews
from support.watched import Watched

BLOCK_TOKENS = 4
SESSION = (1, 1)
HASHES = [b"a", b"b", b"c", b"d", b"e"]

acts = st.lists(
    st.one_of(
        st.tuples(st.just("commit"), st.lists(st.sampled_from(HASHES), min_size=1, max_size=4), st.sampled_from("mn")),
        st.tuples(st.just("evict"), st.lists(st.sampled_from(HASHES), max_size=3), st.sampled_from("mn")),
        st.tuples(st.just("crowd"), st.just([]), st.just("")),
        st.tuples(st.just("watch"), st.just([]), st.just("")),
        st.tuples(st.just("turn"), st.just([]), st.just("")),
    ),
    max_size=30,
)


def _pool() -> Pool:
    pool = Pool(PoolConfig(block_count=8, block_tokens=BLOCK_TOKENS))
    pool.create_session("", 2**62, False, 0)
    return pool


def _commit(pool: Pool, hashes: list[bytes], namespace: str) -> None:
    refs = pool.allocate(*SESSION, len(hashes))
    tokens = np.full(len(refs), BLOCK_TOKENS)
    pool.commit(*SESSION, refs, namespace, hashes, tokens, tokens)
    pool.free(*SESSION, refs)


def _act(pool: Pool, act: str, hashes: list[bytes], namespace: str) -> None:
    """Changes the pool; what is committed is free again afterwards, so that it can be evicted."""
    if act == "commit":
        _commit(pool, hashes, namespace)
    elif act == "evict":
        pool.evict(*SESSION, pool.allocate(*SESSION, 0), namespace, hashes)
    elif act == "crowd":
        pool.free(*SESSION, pool.allocate(*SESSION, 6))


def _apply(known: Watched, data: bytes) -> None:
    known.fold(watching.block_changes(pb.WatchBlocksResponse.FromString(data)))


def _begin(news: BlockNews) -> Watched:
    snapshot, known = news.snapshot(), Watched()
    for index in range(snapshot.part_count):
        _apply(known, snapshot.part(index))
    return known


def _catch_up(news: BlockNews, watchers: Iterable[Watched]) -> None:
    for known in watchers:
        assert known.cursor is not None
        _apply(known, news.log.behind(known.cursor.sequence, 2**20)[0])


@settings(deadline=None, max_examples=300)
@given(what=acts, rows=st.sampled_from([1, 3, 4096]))
async def test_folding(what: list[tuple[str, list[bytes], str]], rows: int) -> None:
    """Watchers who came at different moments know the same, and that it is so; in batches of whatever size."""
    pool = _pool()
    news, watchers = BlockNews(pool, 2**20), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_news, "BATCH_ROWS", rows)
        patch.setattr(block_news, "BATCH_SECONDS", 0.0)
        news.listen()
        for act, hashes, namespace in what:
            _act(pool, act, hashes, namespace)
            if act == "watch":
                watchers.append(_begin(news))
            elif act == "turn":
                await asyncio.sleep(0.001)
        watchers.append(_begin(news))
        await asyncio.sleep(0.002)
        _catch_up(news, watchers)

    generations = pool.blocks.generations
    expected = {block: (generations[block], namespace, value) for namespace, value, block in pool.prefixes.items()}
    for known in watchers:
        assert known.names == expected


async def test_what_is_taken_back_at_once_is_not_told() -> None:
    """A block that was found for less than a batch is told as one that cannot be found."""
    pool = _pool()
    news = BlockNews(pool, 2**20)
    news.listen()
    _commit(pool, [b"a", b"b"], "m")
    pool.evict(*SESSION, pool.allocate(*SESSION, 0), "m", [b"a"])
    await news.until_told()

    (changes,) = pb.WatchBlocksResponse.FromString(news.log.behind(0, 2**20)[0]).changes
    assert list(changes.prefix_hashes) == [b"b"]
    assert len(changes.unlisted_block_ids) == 1


async def test_snapshots_are_shared_while_they_can_be_gone_on_from() -> None:
    """Watchers who come together cost one snapshot; one that has fallen behind what is kept is not given to anybody."""
    pool = _pool()
    news = BlockNews(pool, max_bytes=1)
    news.listen()
    first = news.snapshot()
    assert news.snapshot() is first

    for number in range(2):
        _commit(pool, [b"%d" % number], "m")
        await news.until_told()

    assert not news.log.reaches(first.sequence)
    assert news.snapshot() is not first


async def test_changes_cost_nothing_before_anybody_watches() -> None:
    """Nothing is kept, nor written down, until the first watcher comes."""
    pool = _pool()
    news = BlockNews(pool, 2**20)
    _commit(pool, [b"a"], "m")

    assert (news.rows, news.log.last) == (0, 0)
    assert not news.knows(0)
