"""The journal: a snapshot, and the records of what has happened since, in the files of one folder.

Files are numbered: snapshot n is the state before the first record of segment n. When a segment is half full the next
one begins at once and the snapshot is written beside, so that appending never waits; until it is written, the former
snapshot and both segments tell the same story.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from statepool_server.journal.segment import RECORD_BYTES, Record, Segment, read_segment
from statepool_server.journal.snapshots import read_snapshot, write_snapshot

RESERVE_BYTES = 2**20
"""Room that requests leave at the end of a segment for what cannot be refused: copies that end, leases, deaths."""


class JournalFullError(RuntimeError):
    """Something that cannot be refused could not be written down either: the server must stop, and be started again."""


@dataclass(frozen=True, slots=True)
class History:
    """What a server that is gone has left."""

    incarnation: int
    """The server process."""
    snapshot: bytes | None
    """Where it began; None: no snapshot can be read, so nothing is known."""
    records: list[Record]
    """What happened then, as far as it can be read."""
    is_whole: bool
    """Whether that is all that happened."""


class Journal:
    """The journal of one folder, which belongs to this process (`StateDir`).

    Attributes:
        records: Records that were appended.
        appended_bytes: Bytes of them.
        snapshots: Snapshots that were written.
    """

    def __init__(self, folder: Path, segment_bytes: int) -> None:
        """Builds a journal; nothing is written before `begin`.

        Args:
            folder: Where.
            segment_bytes: Size of a segment; there are at most two and a half of them at a time.
        """
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._segment: Segment | None = None
        self._incarnation = 0
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="statepool-journal")
        self._writing: Future[None] | None = None
        self.records = self.appended_bytes = self.snapshots = 0

    def read(self) -> History | None:
        """Reads what a server has left; None: there was none, or it has left nothing."""
        numbers = sorted(map(_number, self._folder.glob("snapshot-*.bin")), reverse=True)
        if not numbers:
            return None
        for number in numbers:
            body = read_snapshot(self._snapshot_path(number), number)
            if body is not None:
                return self._read_segments(number, body)
        return History(0, None, [], is_whole=False)

    def begin(self, incarnation: int, snapshot: bytes) -> None:
        """Begins anew with a state, and forgets everything before it.

        Raises:
            OSError: The file system has not so much room; what was there before still is.
        """
        number = 1 + max(map(_number, self._files()), default=0)
        self._incarnation = incarnation
        self._segment = self._new_segment(number)
        self._write(number, snapshot)

    def has_room(self, payload_bytes: int) -> bool:
        """Tells whether a request can be taken whose record has so many bytes."""
        return self._open.has_room(payload_bytes + RECORD_BYTES + RESERVE_BYTES)

    def append(self, record: Record) -> None:
        """Writes a record down.

        Raises:
            JournalFullError: There is no room at all.
        """
        if not self._open.has_room(len(record.payload) + RECORD_BYTES):
            raise JournalFullError(f"{self._folder}: no room for a record of {len(record.payload)} bytes")
        self._open.append(record)
        self.records += 1
        self.appended_bytes += len(record.payload) + RECORD_BYTES

    @property
    def room_bytes(self) -> int:
        """Bytes up to the end of the segment that is being written; its successor is begun at half of it."""
        return self._open.room

    @property
    def failure(self) -> BaseException | None:
        """Why the last snapshot could not be written; None: it was, or is being written."""
        return self._writing.exception() if self._writing is not None and self._writing.done() else None

    @property
    def wants_snapshot(self) -> bool:
        """Whether it is time to `turn`."""
        return self._open.room < self._segment_bytes // 2 and (self._writing is None or self._writing.done())

    def turn(self, snapshot: Callable[[], bytes]) -> "Future[None]":
        """Begins the next segment, and has the snapshot before it written.

        Args:
            snapshot: Tells the state of this moment; not called where no segment can be begun.

        Returns:
            A future that raises OSError where the file system has not so much room: then everything goes on with the
            files that are there, and it is soon time to turn again.
        """
        former = self._open
        try:
            self._segment = self._new_segment(former.number + 1)
        except OSError as error:
            self._writing = Future()
            self._writing.set_exception(error)
        else:
            former.close()
            self._writing = self._writer.submit(self._write, self._segment.number, snapshot())
        return self._writing

    def close(self) -> None:
        """Waits for what is being written, and leaves the files where they are."""
        self._writer.shutdown()
        if self._segment is not None:
            self._segment.close()
            self._segment = None

    def remove(self) -> None:
        """Removes all files; the journal is closed, or has not begun."""
        for path in self._files():
            path.unlink(missing_ok=True)

    @property
    def _open(self) -> Segment:
        if self._segment is None:
            raise RuntimeError("the journal has not begun")
        return self._segment

    def _new_segment(self, number: int) -> Segment:
        path = self._segment_path(number)
        return Segment(path, self._segment_bytes, number=number, incarnation=self._incarnation)

    def _write(self, number: int, snapshot: bytes) -> None:
        """Writes a snapshot, and removes what it makes superfluous."""
        write_snapshot(self._snapshot_path(number), number, snapshot)
        self.snapshots += 1
        for path in self._files():
            if _number(path) < number:
                path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return [*self._folder.glob("snapshot-*.bin"), *self._folder.glob("segment-*.log")]

    def _read_segments(self, number: int, snapshot: bytes) -> History:
        records: list[Record] = []
        contents = read_segment(self._segment_path(number), number)
        incarnation, is_whole = (contents.incarnation if contents else 0), contents is not None
        while contents is not None and is_whole:
            records += contents.records
            is_whole = contents.is_whole
            number += 1
            contents = read_segment(self._segment_path(number), number)
        return History(incarnation, snapshot, records, is_whole)

    def _snapshot_path(self, number: int) -> Path:
        return self._folder / f"snapshot-{number:012}.bin"

    def _segment_path(self, number: int) -> Path:
        return self._folder / f"segment-{number:012}.log"


def _number(path: Path) -> int:
    return int(path.stem.partition("-")[2])
