"""The history of a run: what every process asked, was answered and did, with times that all of them share."""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SUFFIX = ".history"
SAME, OTHERWISE = "same", "otherwise"
"""How a step that was asked for again was answered."""


@dataclass(frozen=True, slots=True)
class Fact:
    """Something that a process noted."""

    at_ns: int
    """When, by the machine's monotonic clock, which all processes share."""
    process: str
    """Who."""
    kind: str
    """What kind of thing."""
    facts: dict[str, Any]
    """The rest of it."""

    def __getitem__(self, name: str) -> Any:
        return self.facts[name]


class History:
    """One process's part: a line per fact, each written by one system call, so that a kill loses none before it."""

    def __init__(self, folder: Path, process: str) -> None:
        """Opens a file of this process's own, whatever former processes of its name have left.

        Args:
            folder: Folder of the run's history.
            process: Name of the process.
        """
        path = folder / f"{process}@{os.getpid()}{SUFFIX}"
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(self, kind: str, **facts: Any) -> None:
        """Writes a fact, as of now."""
        line = json.dumps({"at_ns": time.monotonic_ns(), "kind": kind, **facts}, separators=(",", ":"))
        os.write(self._descriptor, line.encode() + b"\n")


def read(folder: Path) -> list[Fact]:
    """Reads the history of a run, in the order of time."""
    facts = [fact for path in folder.glob(f"*{SUFFIX}") for fact in _facts(path)]
    return sorted(facts, key=lambda fact: fact.at_ns)


def _facts(path: Path) -> Iterator[Fact]:
    *whole, _torn = path.read_bytes().split(b"\n")  # a kill may have come within the last line
    for line in whole:
        values = json.loads(line)
        yield Fact(values.pop("at_ns"), path.name.partition("@")[0], values.pop("kind"), values)
