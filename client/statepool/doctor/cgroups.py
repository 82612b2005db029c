"""The memory limit of a process: that of its control group, or of one above it."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_V1_ROOT, _V2_ROOT = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
_UNLIMITED = 2**62
"""From here on a limit of version 1 means none: it writes the largest multiple of a page."""


def memory_limit(process: str) -> int | None:
    """Finds the lowest memory limit that holds for a process.

    Args:
        process: Its name in /proc: a number, or ``self``.

    Returns:
        Bytes; None: there is no limit, or it cannot be seen from here.
    """
    limits = [limit for file in _limit_files(process) if (limit := _read(file)) is not None]
    return min(limits, default=None)


def _limit_files(process: str) -> Iterator[Path]:
    """Yields the files of its own group and all above; in a container the topmost that is visible is its own."""
    with suppress(OSError):
        for line in Path(f"/proc/{process}/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if "memory" in controllers.split(","):
                yield from _upwards(_V1_ROOT, path, "memory.limit_in_bytes")
            elif not controllers:
                yield from _upwards(_V2_ROOT, path, "memory.max")


def _upwards(root: Path, path: str, name: str) -> Iterator[Path]:
    group = root / path.lstrip("/")
    yield group / name
    for parent in group.parents:
        if parent.is_relative_to(root):
            yield parent / name


def _read(file: Path) -> int | None:
    try:
        text = file.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text != "max" and int(text) < _UNLIMITED else None
