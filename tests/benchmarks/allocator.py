"""The allocator in process: ns per block, against the bars of the design."""

import gc
import time
import tracemalloc
from collections.abc import Callable

import numpy as np

from statepool.refs import BlockRefs
from statepool_server.pool import Pool, PoolConfig

BATCH = 256
BLOCK_TOKENS = 16
SMALL, MIDDLE, LARGE = 1024, 8192, 256 * 1024
HASH_BYTES = 32
REPEATS = 40
STEPS = 25
Row = tuple[str, float, str, str]
"""Name, value, unit, bar."""
Session = tuple[int, int]
"""Session id and epoch."""

_BOUNDARIES = np.full(BATCH, BLOCK_TOKENS, np.int64)


class Hashes:
    """Makes batches of prefix hashes that never occur again, as new objects, as a message brings them."""

    def __init__(self) -> None:
        self._count = 0

    def batch(self) -> list[bytes]:
        """Makes the next batch."""
        first, self._count = self._count, self._count + BATCH
        return [number.to_bytes(HASH_BYTES, "little") for number in range(first, first + BATCH)]


def _pool(block_count: int) -> tuple[Pool, Session]:
    pool = Pool(PoolConfig(block_count=block_count + 1, block_tokens=BLOCK_TOKENS))
    session, _ = pool.create_session("", 10**9, False, 0)
    return pool, (session.session_id, session.epoch)


def _commit_and_free(pool: Pool, session: Session, refs: BlockRefs, hashes: list[bytes]) -> None:
    pool.commit(*session, refs, "m", hashes, _BOUNDARIES, _BOUNDARIES)
    pool.free(*session, refs)


def _best_ns_per_block(step: Callable[[list[bytes]], None]) -> float:
    """Times the step alone; many short repeats, so that some of them have the core to themselves."""
    hashes, best = Hashes(), float("inf")
    for _ in range(REPEATS):
        spent_ns = 0
        for _ in range(STEPS):
            batch = hashes.batch()
            started = time.perf_counter_ns()
            step(batch)
            spent_ns += time.perf_counter_ns() - started
        best = min(best, spent_ns / (STEPS * BATCH))
    return best


def allocate_and_free(block_count: int) -> float:
    """Measures allocate + free in batches, ns per block."""
    pool, session = _pool(block_count)
    return _best_ns_per_block(lambda _: pool.free(*session, pool.allocate(*session, BATCH)))


def allocate_commit_and_free(block_count: int) -> float:
    """Measures allocate (evicting) + commit + free in batches on a full pool, ns per block."""
    pool, session = _full_pool(block_count)
    return _best_ns_per_block(
        lambda hashes: _commit_and_free(pool, session, pool.allocate(*session, BATCH), hashes),
    )


def _full_pool(block_count: int) -> tuple[Pool, Session]:
    """Builds a pool of nothing but evictable blocks."""
    pool, session = _pool(block_count)
    for number in range(block_count // BATCH):
        hashes = [b"%d of the full pool, %d" % (row, number) for row in range(BATCH)]
        _commit_and_free(pool, session, pool.allocate(*session, BATCH), hashes)
    return pool, session


def creation_ms(block_count: int) -> float:
    """Measures the creation of a pool, milliseconds."""
    times = []
    for _ in range(7):
        gc.collect()
        started = time.perf_counter_ns()
        pool = _pool(block_count)
        times.append((time.perf_counter_ns() - started) / 1e6)
        del pool
    return min(times)


def bytes_per_block(build: Callable[[int], tuple[Pool, Session]], block_count: int) -> float:
    """Measures what the Python heap and the arrays of a pool take, bytes per block."""
    gc.collect()
    tracemalloc.start()
    pool = build(block_count)
    gc.collect()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del pool
    return size / block_count


def rows() -> list[Row]:
    """Measures everything."""
    small, large = allocate_and_free(SMALL), allocate_and_free(LARGE)
    return [
        ("allocate + free, batches of 256", large, "ns/block", "<= 150"),
        ("... pool of 256 k against 1 k blocks", large / small, "x", "<= 1.2"),
        ("allocate + commit + evict + free", allocate_commit_and_free(MIDDLE), "ns/block", "<= 400"),
        ("... pool of 256 k blocks", allocate_commit_and_free(LARGE), "ns/block", "-"),
        ("create a pool of 256 k blocks", creation_ms(LARGE), "ms", "< 50"),
        ("memory, all blocks blank", bytes_per_block(_pool, LARGE), "bytes/block", "< 200"),
        ("... all committed, hashes included", bytes_per_block(_full_pool, LARGE), "bytes/block", "-"),
    ]


if __name__ == "__main__":
    for name, value, unit, bar in rows():
        print(f"{name:40} {value:8.1f} {unit:12} {bar}")
