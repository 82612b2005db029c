"""Failpoints: named places where a test makes a server fail, as the environment says when the process starts.

``STATEPOOL_FAILPOINTS="copy=2+1*sleep(3000);journal.append=kill"`` lets the first two copies pass, makes the third
stand still for three seconds, and kills the process at its first append. Each entry is
``name=[skip+][count*]action``: `skip` visits pass, `count` visits act (all of them by default), later ones pass. The
actions:

* ``sleep(ms)`` stops the thread that is there, and no other, for so many milliseconds;
* ``kill`` ends the process as SIGKILL does;
* ``stop`` stops the process as SIGSTOP does, until somebody sends SIGCONT;
* ``error`` raises `FailpointError`.

Without the variable, `reach` is a function that does nothing.
"""

import itertools
import os
import re
import signal
import time
from collections.abc import Callable, Mapping

VARIABLE = "STATEPOOL_FAILPOINTS"
"""The environment variable."""

_ENTRY = re.compile(
    r"(?P<name>[a-z][a-z0-9_.]*)=(?:(?P<skip>\d+)\+)?(?:(?P<count>\d+)\*)?"
    r"(?:sleep\((?P<ms>\d+)\)|(?P<word>kill|stop|error))"
)


class FailpointError(RuntimeError):
    """What the action ``error`` raises; nothing but a test ever sees one."""


class Failpoints:
    """The failpoints of a specification."""

    def __init__(self, specification: str) -> None:
        """Reads a specification.

        Args:
            specification: Entries, separated by semicolons.

        Raises:
            ValueError: An entry is none, or a name has two.
        """
        self._points: dict[str, Callable[[], None]] = {}
        for entry in filter(None, map(str.strip, specification.split(";"))):
            match = _ENTRY.fullmatch(entry)
            if match is None:
                raise ValueError(f"{VARIABLE}: {entry!r} is not name=[skip+][count*]sleep(ms)|kill|stop|error")
            if match["name"] in self._points:
                raise ValueError(f"{VARIABLE}: {match['name']} is there twice")
            self._points[match["name"]] = _point(match)

    def reach(self, name: str) -> None:
        """Acts, if there is a failpoint of this name and it is its turn.

        Raises:
            FailpointError: That is its action.
        """
        point = self._points.get(name)
        if point is not None:
            point()


def _point(match: re.Match[str]) -> Callable[[], None]:
    """Makes the action of an entry, with a count of its visits; several threads may pass at a time."""
    name, visits = match["name"], itertools.count()
    act = _sleep(int(match["ms"])) if match["ms"] else _WORDS[match["word"]]
    first = int(match["skip"] or 0)
    end = float("inf") if match["count"] is None else first + int(match["count"])

    def point() -> None:
        if first <= next(visits) < end:
            act(name)

    return point


def _sleep(milliseconds: int) -> Callable[[str], None]:
    return lambda _name: time.sleep(milliseconds / 1000)


def _signal(number: signal.Signals) -> Callable[[str], None]:
    return lambda _name: os.kill(os.getpid(), number)


def _raise(name: str) -> None:
    raise FailpointError(f"failpoint {name}")


def _pass(_name: str) -> None:
    """Does nothing."""


_WORDS: Mapping[str, Callable[[str], None]] = {
    "kill": _signal(signal.SIGKILL),
    "stop": _signal(signal.SIGSTOP),
    "error": _raise,
}
_specification = os.environ.get(VARIABLE, "")
reach: Callable[[str], None] = Failpoints(_specification).reach if _specification else _pass
"""Acts at a failpoint of this process's environment; `failpoints.reach("name")` marks the place."""
