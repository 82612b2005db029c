"""One file of records, mapped shared: what was appended is there for whoever opens the file next, whatever kills us.

A record is written whole before the end of the file's contents moves past it, so a process that dies in the middle of
an append leaves the records before it as they were. Every record carries a checksum that also depends on its place; the
end is kept twice.
"""

import contextlib
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import xxhash

MAGIC = b"SPJRNL01"
"""First bytes of a segment."""

_HEADER = struct.Struct("<8sQQ")  # magic, incarnation, number
_ENDS = struct.Struct("<QQ")
_ENDS_OFFSET = 64
_FIRST = 128
_AHEAD_BYTES = 2**18  # pages are taken some at a time, since the first touch of each costs more than a record
_PAGE_BYTES = mmap.PAGESIZE
_RECORD = struct.Struct("<QIIQQ")  # checksum; then what it covers: payload bytes, kind, time, proof
_COVERED = struct.Struct("<IIQQ")
_CHECKSUM = struct.Struct("<Q")

MADV_POPULATE_WRITE = 23
"""From linux/mman.h (Linux 5.14); makes pages present."""

RECORD_BYTES = _RECORD.size
"""Bytes of a record beside its payload."""


class Record(NamedTuple):
    """Something that happened."""

    kind: int
    """What."""
    time_ns: int
    """When, on the monotonic clock."""
    proof: int
    """What it came to, summed up: running it again must come to the same."""
    payload: bytes
    """The rest."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What a segment holds."""

    incarnation: int
    """The server process that wrote it."""
    records: list[Record]
    """Its records, as far as they can be read."""
    is_whole: bool
    """Whether that is all that was ever appended."""


class Segment:
    """A segment that is being written."""

    def __init__(self, path: Path, nbytes: int, *, number: int, incarnation: int) -> None:
        """Creates the file, without a record.

        Args:
            path: The file; one that is there is replaced.
            nbytes: Its size; its pages are taken as they are needed.
            number: Its place among the segments of a journal.
            incarnation: The server process that writes it.

        Raises:
            OSError: The file system has no room at all.
        """
        self.path = path
        self.number = number
        self._nbytes = nbytes
        self._end = self._taken = _FIRST
        path.unlink(missing_ok=True)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(self._descriptor, nbytes)
            os.posix_fallocate(self._descriptor, 0, self._taken)
            self._map = mmap.mmap(self._descriptor, nbytes, mmap.MAP_SHARED)
        except BaseException:
            os.close(self._descriptor)
            path.unlink(missing_ok=True)
            raise
        _ENDS.pack_into(self._map, _ENDS_OFFSET, self._end, self._end)
        _HEADER.pack_into(self._map, 0, MAGIC, incarnation, number)

    @property
    def room(self) -> int:
        """Bytes up to the end of the file."""
        return self._nbytes - self._end

    def has_room(self, nbytes: int) -> bool:
        """Takes pages, so that so many bytes can be appended whatever happens; tells whether that is so."""
        needed = self._end + nbytes
        if needed <= self._taken:
            return True
        if needed > self._nbytes:
            return False
        for target in (min(needed + _AHEAD_BYTES, self._nbytes), needed):
            try:
                os.posix_fallocate(self._descriptor, self._taken, target - self._taken)
            except OSError:  # the file system is full, or this process has reached a limit
                continue
            self._populate(target)
            self._taken = target
            return True
        return False

    def _populate(self, target: int) -> None:
        start = self._taken // _PAGE_BYTES * _PAGE_BYTES
        with contextlib.suppress(OSError):  # an older kernel: pages come at their first use
            self._map.madvise(MADV_POPULATE_WRITE, start, target - start)

    def append(self, record: Record) -> None:
        """Appends a record; there must be room."""
        covered = _COVERED.pack(len(record.payload), record.kind, record.time_ns, record.proof) + record.payload
        start, end = self._end, self._end + _CHECKSUM.size + len(covered)
        self._map[start:end] = _CHECKSUM.pack(xxhash.xxh3_64_intdigest(covered, start)) + covered
        _ENDS.pack_into(self._map, _ENDS_OFFSET, end, end)
        self._end = end

    def close(self) -> None:
        """Unmaps the file and leaves it where it is."""
        self._map.close()
        os.close(self._descriptor)


def read_segment(path: Path, number: int) -> Contents | None:
    """Reads a segment.

    Args:
        path: The file.
        number: The number that it must have.

    Returns:
        Its contents; None where there is no such segment, or none that was begun.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    if len(data) < _FIRST or data[:_FIRST] == bytes(_FIRST):
        return None
    magic, incarnation, found = _HEADER.unpack_from(data)
    if magic != MAGIC or found != number:
        return Contents(incarnation, [], is_whole=False)
    ends = _ENDS.unpack_from(data, _ENDS_OFFSET)
    records, position = [], _FIRST
    while position < max(ends):
        record = _read_record(data, position)
        if record is None:
            break
        records.append(record)
        position += RECORD_BYTES + len(record.payload)
    # A process that died between its two notes of the end had not acted on the last record: either will do.
    return Contents(incarnation, records, is_whole=position in ends)


def _read_record(data: bytes, start: int) -> Record | None:
    if start + RECORD_BYTES > len(data):
        return None
    checksum, nbytes, kind, time_ns, proof = _RECORD.unpack_from(data, start)
    end = start + RECORD_BYTES + nbytes
    covered = data[start + _CHECKSUM.size : end]
    if end > len(data) or checksum != xxhash.xxh3_64_intdigest(covered, start):
        return None
    return Record(kind, time_ns, proof, data[start + RECORD_BYTES : end])
