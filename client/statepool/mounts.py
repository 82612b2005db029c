"""Which file system a folder lies on.

Paths of another process may not mean the same here, or nothing (it may have another root); device numbers do.
"""

import os
from dataclasses import dataclass
from pathlib import Path

_ESCAPED_SPACE = "\\040"


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder and the file system that it lies on, or would."""

    path: Path
    """Its path, as whoever uses it has it."""
    device: int
    """Number of the file system, as `os.stat` gives it."""

    @classmethod
    def here(cls, path: Path) -> "Folder":
        """Describes a folder in this process's file system, whether it exists or not."""
        return cls(path, existing(path).stat().st_dev)


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted file system, as a line of /proc/PID/mountinfo has it."""

    device: int
    """Number of the file system."""
    point: Path
    """Where it is mounted."""
    kind: str
    """Its type, for example "tmpfs"."""
    options: tuple[str, ...]
    """Options of the file system itself, for example "huge=advise"."""

    @classmethod
    def of(cls, device: int, process: str) -> "Mount | None":
        """Finds a file system among the mounts of a process.

        Args:
            device: Number of the file system.
            process: Name of the process in /proc.

        Returns:
            One of its mounts; None: there is none (some file systems, though no tmpfs, have numbers beside).

        Raises:
            OSError: The process's mounts cannot be read.
        """
        lines = Path(f"/proc/{process}/mountinfo").read_text(encoding="utf-8").splitlines()
        return next((mount for mount in map(cls._parse, lines) if mount.device == device), None)

    @classmethod
    def _parse(cls, line: str) -> "Mount":
        place, _, system = line.partition(" - ")
        _, _, device, _, point, *_ = place.split(" ")
        major, minor = device.split(":")
        kind, _, options = system.split(" ", 2)
        return cls(
            os.makedev(int(major), int(minor)),
            Path(point.replace(_ESCAPED_SPACE, " ")),
            kind,
            tuple(options.split(",")),
        )

    @property
    def huge(self) -> str:
        """Its option huge=, "never" unless it has one."""
        return next((option.removeprefix("huge=") for option in self.options if option.startswith("huge=")), "never")


def existing(path: Path) -> Path:
    """Finds the folder itself, or the lowest one above it that exists and can be looked at."""
    return next(folder for folder in (path, *path.parents) if os.access(folder, os.F_OK))
