"""Guarantee: what was appended to a segment is read back, and what was not, or was changed since, never is."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from statepool_server.journal.segment import Record, Segment, read_segment

NBYTES = 2**16
INCARNATION = 7

records = st.lists(
    st.builds(
        Record,
        kind=st.integers(0, 2**32 - 1),
        time_ns=st.integers(0, 2**64 - 1),
        proof=st.integers(0, 2**64 - 1),
        payload=st.binary(max_size=300),
    ),
    max_size=12,
)
on_files = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _written(path: Path, records: list[Record]) -> int:
    """Writes a segment as a process does that is killed afterwards; returns the bytes in use."""
    segment = Segment(path, NBYTES, number=3, incarnation=INCARNATION)
    for record in records:
        assert segment.has_room(len(record.payload) + 64)
        segment.append(record)
    return NBYTES - segment.room


@on_files
@given(records=records)
def test_everything_is_read_back(tmp_path: Path, records: list[Record]) -> None:
    """Records come back in order, with their incarnation, although nobody closed the file."""
    _written(tmp_path / "s", records)

    contents = read_segment(tmp_path / "s", 3)

    assert contents is not None
    assert (contents.incarnation, contents.records, contents.is_whole) == (INCARNATION, records, True)


@on_files
@given(records=records, data=st.data())
def test_any_changed_byte_is_found(tmp_path: Path, records: list[Record], data: st.DataObject) -> None:
    """A flipped bit anywhere costs at most what comes from there on; it is told, unless nothing is lost by it."""
    end = _written(tmp_path / "s", records)
    image = bytearray((tmp_path / "s").read_bytes())
    position = data.draw(st.integers(0, end - 1))
    image[position] ^= 1 << data.draw(st.integers(0, 7))
    (tmp_path / "s").write_bytes(image)

    contents = read_segment(tmp_path / "s", 3)

    assert contents is not None
    assert contents.records == records[: len(contents.records)]
    if len(contents.records) < len(records):
        assert not contents.is_whole
    if position >= 128:
        assert not contents.is_whole


@on_files
@given(records=records, torn=st.binary(min_size=1, max_size=200))
def test_an_append_that_was_cut_off(tmp_path: Path, records: list[Record], torn: bytes) -> None:
    """Bytes behind the end, of a record that was never finished, are as if they were not there."""
    end = _written(tmp_path / "s", records)
    image = bytearray((tmp_path / "s").read_bytes())
    image[end : end + len(torn)] = torn
    (tmp_path / "s").write_bytes(image)

    contents = read_segment(tmp_path / "s", 3)

    assert contents is not None
    assert (contents.records, contents.is_whole) == (records, True)


@on_files
@given(records=records.filter(bool), lost=st.integers(1, 2**16 - 128))
def test_a_file_that_was_cut_short(tmp_path: Path, records: list[Record], lost: int) -> None:
    """A shorter file tells that something is missing, if something is."""
    end = _written(tmp_path / "s", records)
    image = (tmp_path / "s").read_bytes()[:-lost]
    (tmp_path / "s").write_bytes(image)

    contents = read_segment(tmp_path / "s", 3)

    assert contents is not None
    assert contents.is_whole == (len(image) >= end)


def test_another_number_is_not_taken(tmp_path: Path) -> None:
    """A segment in the wrong place tells nothing; a missing one does not exist."""
    _written(tmp_path / "s", [Record(1, 2, 3, b"x")])

    contents = read_segment(tmp_path / "s", 4)

    assert contents is not None
    assert (contents.records, contents.is_whole) == ([], False)
    assert read_segment(tmp_path / "other", 4) is None


def test_room_ends(tmp_path: Path) -> None:
    """A segment has room for what its file can hold, and no more."""
    segment = Segment(tmp_path / "s", NBYTES, number=1, incarnation=1)
    room = segment.room

    assert segment.has_room(room)
    assert not segment.has_room(room + 1)
    segment.close()


@pytest.mark.parametrize("content", [b"", b"\0" * 4096])
def test_a_file_that_never_was_a_segment(tmp_path: Path, content: bytes) -> None:
    """A process that dies before a segment is made leaves none."""
    (tmp_path / "s").write_bytes(content)

    assert read_segment(tmp_path / "s", 1) is None
