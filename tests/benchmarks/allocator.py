"""The allocator in process: ns per block, against the bars of the design."""

import gc
import time
from collections.abc import Callable, Sequence

import numpy as np

from statepool_server.pool import Pool, PoolConfig

BATCH = 256
REPEATS = 7
Row = tuple[str, float, str, str]
"""Name, value, unit, bar."""


def _pool(block_count: int) -> tuple[Pool, tuple[int, int]]:
    pool = Pool(PoolConfig(block_count=block_count + 1, block_tokens=16))
    session, _ = pool.create_session("", 10**9, False, 0)
    return pool, (session.session_id, session.epoch)


def _best_ns_per_block(step: Callable[[], None], steps: int) -> float:
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter_ns()
        for _ in range(steps):
            step()
        times.append((time.perf_counter_ns() - started) / (steps * BATCH))
    return min(times)


def allocate_and_free(block_count: int) -> float:
    """Measures allocate + free in batches, ns per block."""
    pool, session = _pool(block_count)

    def step() -> None:
        pool.free(*session, pool.allocate(*session, BATCH))

    step()
    return _best_ns_per_block(step, 200)


def allocate_commit_and_free(block_count: int) -> float:
    """Measures allocate (evicting) + commit + free in batches on a full pool, ns per block."""
    pool, session = _pool(block_count)
    boundaries = np.full(BATCH, 16, np.int64)
    counter = iter(range(10**9))

    def hashes() -> Sequence[bytes]:
        first = next(counter) * BATCH
        return [b"%016d" % number for number in range(first, first + BATCH)]

    batches = iter([hashes() for _ in range(block_count // BATCH + 1 + REPEATS * 200)])

    def step() -> None:
        refs = pool.allocate(*session, BATCH)
        pool.commit(*session, refs, "m", next(batches), boundaries, boundaries)
        pool.free(*session, refs)

    for _ in range(block_count // BATCH + 1):
        step()
    return _best_ns_per_block(step, 200)


def creation_ms(block_count: int) -> float:
    """Measures the creation of a pool, milliseconds."""
    times = []
    for _ in range(REPEATS):
        gc.collect()
        started = time.perf_counter_ns()
        pool = _pool(block_count)
        times.append((time.perf_counter_ns() - started) / 1e6)
        del pool
    return min(times)


def bytes_per_block(block_count: int) -> float:
    """Adds up the arrays of a pool, bytes per block."""
    pool, _ = _pool(block_count)
    owners = (pool.blocks, pool.holdings, pool.prefixes)
    arrays = [value for owner in owners for value in vars(owner).values() if isinstance(value, np.ndarray)]
    return sum(array.nbytes for array in arrays) / block_count


def rows() -> list[Row]:
    """Measures everything."""
    small, large = allocate_and_free(1024), allocate_and_free(256 * 1024)
    return [
        ("allocate + free, batches of 256", large, "ns/block", "<= 150"),
        ("... pool of 256 k against 1 k blocks", large / small, "x", "<= 1.2"),
        ("allocate + commit + evict + free", allocate_commit_and_free(8192), "ns/block", "<= 400"),
        ("create a pool of 256 k blocks", creation_ms(256 * 1024), "ms", "< 50"),
        ("columns of a pool", bytes_per_block(256 * 1024), "bytes/block", "< 200"),
    ]


if __name__ == "__main__":
    for name, value, unit, bar in rows():
        print(f"{name:40} {value:8.1f} {unit:12} {bar}")
