"""Guarantee: whenever a process dies, what it wrote down is read back: a snapshot and everything since."""

import resource
import signal
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from statepool_server.journal.journal import RESERVE_BYTES, Journal, JournalFullError
from statepool_server.journal.segment import Record

SEGMENT_BYTES = 4 * RESERVE_BYTES


def _record(number: int, nbytes: int = 8) -> Record:
    return Record(1, number, 0, number.to_bytes(nbytes, "little"))


def _read(folder: Path) -> tuple[int, bytes | None, list[int], bool]:
    history = Journal(folder, SEGMENT_BYTES).read()
    assert history is not None
    numbers = [int.from_bytes(record.payload, "little") for record in history.records]
    return history.incarnation, history.snapshot, numbers, history.is_whole


def _turned(journal: Journal, snapshot: bytes) -> "Future[None]":
    future = journal.turn(lambda: snapshot)
    future.exception()
    return future


def test_nothing(tmp_path: Path) -> None:
    """A folder without a journal has no history."""
    assert Journal(tmp_path, SEGMENT_BYTES).read() is None


def test_snapshot_and_records(tmp_path: Path) -> None:
    """What is read is the snapshot and the records since, of the process that wrote them."""
    journal = Journal(tmp_path, SEGMENT_BYTES)
    journal.begin(5, b"first")
    for number in range(3):
        journal.append(_record(number))

    assert _read(tmp_path) == (5, b"first", [0, 1, 2], True)


def test_turn(tmp_path: Path) -> None:
    """A new snapshot takes the place of the records before it, and their files are removed."""
    journal = Journal(tmp_path, SEGMENT_BYTES)
    journal.begin(5, b"first")
    journal.append(_record(0))

    _turned(journal, b"second")
    journal.append(_record(1))

    assert _read(tmp_path) == (5, b"second", [1], True)
    assert len(list(tmp_path.iterdir())) == 2


def test_death_before_the_new_snapshot_is_written(tmp_path: Path) -> None:
    """Until the new snapshot is whole, the old one and the records of both segments tell the story."""
    journal = Journal(tmp_path, SEGMENT_BYTES)
    journal.begin(5, b"first")
    journal.append(_record(0))
    old = {path: path.read_bytes() for path in tmp_path.iterdir()}
    _turned(journal, b"second")
    journal.append(_record(1))
    next(tmp_path.glob("snapshot-*")).unlink()
    for path, content in old.items():
        path.write_bytes(content)

    assert _read(tmp_path) == (5, b"first", [0, 1], True)


def test_damaged_snapshot(tmp_path: Path) -> None:
    """Without a snapshot nothing is known; that something was there is."""
    Journal(tmp_path, SEGMENT_BYTES).begin(5, b"first")
    path = next(tmp_path.glob("snapshot-*"))
    path.write_bytes(path.read_bytes()[:-1] + b"T")

    assert _read(tmp_path) == (0, None, [], False)


def test_missing_segment(tmp_path: Path) -> None:
    """A snapshot without its segment is not the whole story."""
    Journal(tmp_path, SEGMENT_BYTES).begin(5, b"first")
    next(tmp_path.glob("segment-*")).unlink()

    assert _read(tmp_path)[1:] == (b"first", [], False)


def test_begin_again(tmp_path: Path) -> None:
    """The next process begins with a state of its own, and what came before is gone."""
    first = Journal(tmp_path, SEGMENT_BYTES)
    first.begin(5, b"first")
    first.append(_record(0))
    first.close()

    second = Journal(tmp_path, SEGMENT_BYTES)
    second.begin(6, b"second")
    second.append(_record(9))

    assert _read(tmp_path) == (6, b"second", [9], True)
    assert len(list(tmp_path.iterdir())) == 2


def test_remove(tmp_path: Path) -> None:
    """Nothing is left."""
    journal = Journal(tmp_path, SEGMENT_BYTES)
    journal.begin(5, b"first")
    journal.close()
    journal.remove()

    assert list(tmp_path.iterdir()) == []


def test_a_turn_is_due_at_half(tmp_path: Path) -> None:
    """A segment that is half full wants a snapshot."""
    journal = Journal(tmp_path, SEGMENT_BYTES)
    journal.begin(5, b"first")
    before = journal.wants_snapshot
    journal.append(_record(1, SEGMENT_BYTES // 2))

    assert (before, journal.wants_snapshot) == (False, True)


@pytest.fixture
def small_files() -> Iterator[None]:
    """Has the kernel refuse this process files as large as a segment, as a full file system would."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, former)
    signal.signal(signal.SIGXFSZ, handler)


def _limit_files(nbytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def _append_until_full(journal: Journal, number: int) -> int:
    """Appends records, however little room is left; returns the number after the last."""
    try:
        while True:
            journal.append(_record(number, 2**16))
            number += 1
    except JournalFullError:
        return number


def test_no_room_for_another_segment(tmp_path: Path, small_files: None) -> None:
    """Without room for a new segment everything goes on in the old one, for requests until the reserve is touched."""
    journal = Journal(tmp_path, SEGMENT_BYTES)
    journal.begin(5, b"first")
    _limit_files(SEGMENT_BYTES // 2)
    journal.append(_record(0))

    failed = _turned(journal, b"second").exception()
    requests = 1
    while journal.has_room(2**16):
        journal.append(_record(requests, 2**16))
        requests += 1
    others = _append_until_full(journal, requests)

    assert isinstance(failed, OSError)
    assert others - requests >= RESERVE_BYTES // 2**16 - 1
    assert _read(tmp_path) == (5, b"first", list(range(others)), True)


def test_room_comes_back(tmp_path: Path, small_files: None) -> None:
    """As soon as there is room again a turn succeeds, and requests are taken again."""
    journal = Journal(tmp_path, SEGMENT_BYTES)
    journal.begin(5, b"first")
    _limit_files(SEGMENT_BYTES // 2)
    while journal.has_room(2**16):
        journal.append(_record(0, 2**16))
    _turned(journal, b"second")
    _limit_files(resource.RLIM_INFINITY)

    succeeded = _turned(journal, b"third")

    assert succeeded.exception() is None
    assert journal.has_room(2**16)
    assert _read(tmp_path) == (5, b"third", [], True)
