"""Guarantee: memory work is counted while it is under way, timed when it has ended, and told apart when it fails.

A server shows them as statepool_queued_copies and statepool_copy_failures_total.
"""

import asyncio
import threading

import pytest

from statepool.errors import CopiesStalledError, OverloadedError
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


async def test_waiting_for_room() -> None:
    """Who waits for room gets it when work ends, and is refused when it takes too long or work stands still."""
    copies, may_end = CopyThreads(1, 1), threading.Event()
    work = copies.submit(may_end.wait, Chore.COPY, 0)
    with pytest.raises(OverloadedError):
        await copies.room(0.01)
    waiting = [asyncio.ensure_future(copies.room(60.0)) for _ in range(2)]
    await asyncio.sleep(0)
    copies.stall("a copy hangs")
    for refused in waiting:
        with pytest.raises(CopiesStalledError):
            await refused
    copies.resume()
    waits = asyncio.ensure_future(copies.room(60.0))
    await asyncio.sleep(0)
    assert not waits.done()

    may_end.set()
    await waits

    assert work.done()
    await copies.close(60.0)
