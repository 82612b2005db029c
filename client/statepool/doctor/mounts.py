"""Which file system a folder lies on."""

from dataclasses import dataclass
from pathlib import Path

_ESCAPES = {r"\040": " ", r"\011": "\t", r"\012": "\n", r"\134": "\\"}


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted file system, as a line of /proc/PID/mountinfo has it."""

    point: Path
    """Where it is mounted."""
    kind: str
    """Its type, for example "tmpfs"."""
    options: tuple[str, ...]
    """Options of the file system itself, for example "huge=advise"."""

    @classmethod
    def of(cls, path: Path, process: str) -> "Mount":
        """Finds the file system that a path lies on, whether the path exists or not.

        Args:
            path: An absolute path in the file system of the process.
            process: Name of the process in /proc.

        Raises:
            OSError: The process's mounts cannot be read.
        """
        lines = Path(f"/proc/{process}/mountinfo").read_text(encoding="utf-8").splitlines()
        mounts = [mount for mount in map(cls._parse, lines) if path.is_relative_to(mount.point)]
        # Of several at one point the last one hides the others.
        return max(enumerate(mounts), key=lambda pair: (len(pair[1].point.parts), pair[0]))[1]

    @classmethod
    def _parse(cls, line: str) -> "Mount":
        place, _, system = line.partition(" - ")
        kind, _, options = system.split(" ", 2)
        return cls(Path(_unescaped(place.split(" ")[4])), kind, tuple(options.split(",")))

    @property
    def huge(self) -> str:
        """Its option huge=, "never" unless it has one."""
        return next((option.removeprefix("huge=") for option in self.options if option.startswith("huge=")), "never")


def _unescaped(text: str) -> str:
    for escape, character in _ESCAPES.items():
        text = text.replace(escape, character)
    return text
