"""What files say, read anew when they change."""

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import Generic, NamedTuple, TypeVar

import structlog

T = TypeVar("T")

LOOK_SECONDS = 1.0
"""How long what was read is taken for good without a look at the files."""

SETTLED_NS = 500_000_000
"""Minimum age of a file before it is read, so that a half-written one is not taken for a shorter one."""

_log = structlog.get_logger("statepool.access")


class _Stamp(NamedTuple):
    """Changes when a file does."""

    device: int
    inode: int
    size: int
    written_ns: int


class Watched(Generic[T]):
    """A value that files hold.

    Files that can no longer be used leave what was read before in force: a mistake made while turning a certificate
    over must not turn callers away.

    Attributes:
        current: What was read last.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[], T]) -> None:
        """Reads the files.

        Args:
            paths: The files.
            read: Reads them; raises OSError or ValueError where they cannot be used.

        Raises:
            OSError, ValueError: What `read` raised.
        """
        self._paths = paths
        self._read = read
        self._stamps: list[_Stamp] = []
        with contextlib.suppress(OSError):  # `read` says it better
            self._stamps = self._look()
        self._looked_at = time.monotonic()
        self._lock = Lock()  # gRPC asks for certificates from threads of its own
        self.current = read()

    def refresh(self) -> T | None:
        """Reads the files anew if they have changed.

        Returns:
            What they say now; None: what they said before.
        """
        with self._lock:
            now = time.monotonic()
            if now - self._looked_at < LOOK_SECONDS:
                return None
            self._looked_at = now
            return self._read_changes()

    def _read_changes(self) -> T | None:
        try:
            stamps = self._look()
            if stamps == self._stamps:
                return None
            value = None if _are_being_written(stamps) else self._read()
            if value is None or self._look() != stamps:
                return None  # the next look finds them whole
        except (OSError, ValueError) as error:
            _log.error("not read anew, what was read before stays in force", files=self._names, error=str(error))
            return None
        self._stamps, self.current = stamps, value
        _log.info("read anew", files=self._names)
        return value

    def _look(self) -> list[_Stamp]:
        stats = [path.stat() for path in self._paths]
        return [_Stamp(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats]

    @property
    def _names(self) -> list[str]:
        return [str(path) for path in self._paths]


def _are_being_written(stamps: Sequence[_Stamp]) -> bool:
    """Tells whether a file was written a moment ago, by the clock of files; one from the future is taken as it is."""
    now_ns = time.time_ns()
    return any(now_ns - SETTLED_NS < stamp.written_ns <= now_ns for stamp in stamps)
