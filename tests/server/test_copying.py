"""Guarantee: memory work is counted while it is under way, timed when it has ended, and told apart when it fails.

A server shows them as statepool_queued_copies and statepool_copy_failures_total.
"""

import threading

import pytest

from statepool_server.service.copying import Chore, CopyThreads


@pytest.fixture
def copies() -> CopyThreads:
    """Makes a single thread."""
    return CopyThreads(1, 8)


async def test_work_under_way(copies: CopyThreads) -> None:
    """Work counts from when it is queued; what it took and how long it was queued are told apart."""
    may_end = threading.Event()
    first = copies.submit(may_end.wait, Chore.COPY, 100)
    second = copies.submit(lambda: None, Chore.CHECKSUM, 7)
    assert copies.under_way == 2

    threading.Timer(0.05, may_end.set).start()
    await first
    await second
    await copies.close(60.0)

    assert copies.under_way == 0
    assert copies.nbytes == {Chore.COPY: 100, Chore.CHECKSUM: 7}
    assert copies.seconds[Chore.COPY].total >= 0.04
    assert copies.seconds[Chore.CHECKSUM].total < 0.04 <= copies.queued_seconds.total
    assert sum(copies.queued_seconds.counts) == 2


async def test_failures(copies: CopyThreads) -> None:
    """Work that fails is a failure of its kind, and has moved no bytes."""

    def fail() -> None:
        raise RuntimeError("no such memory")

    with pytest.raises(RuntimeError, match="no such memory"):
        await copies.submit(fail, Chore.WRITE, 100)
    await copies.close(60.0)

    assert copies.failures == {Chore.WRITE: 1}
    assert copies.nbytes[Chore.WRITE] == 0
