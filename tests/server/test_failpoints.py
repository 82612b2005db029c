"""Guarantee: a failpoint acts at the visits that its specification names, as it says, and nowhere else."""

import os
import signal
import subprocess
import sys
import time

import pytest

from statepool_server.failpoints import VARIABLE, FailpointError, Failpoints

VISIT_TWICE = """
from statepool_server import failpoints
failpoints.reach("other")
print("reached", flush=True)
failpoints.reach("here")
print("passed", flush=True)
"""


def visits(specification: str, name: str, count: int) -> list[bool]:
    """Visits a failpoint so many times; tells at which it raised."""
    points = Failpoints(specification)
    raised = []
    for _ in range(count):
        try:
            points.reach(name)
            raised.append(False)
        except FailpointError:
            raised.append(True)
    return raised


def process(specification: str) -> "subprocess.Popen[str]":
    """Starts a process that visits two failpoints."""
    environment = os.environ | {VARIABLE: specification}
    return subprocess.Popen(
        [sys.executable, "-c", VISIT_TWICE],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("specification", "expected"),
    [
        ("here=error", [True] * 5),
        ("here=2*error", [True, True, False, False, False]),
        ("here=3+error", [False, False, False, True, True]),
        ("here=1+2*error", [False, True, True, False, False]),
        (" other=kill ; here=1*error; ", [True, False, False, False, False]),
        ("here.too=error", [False] * 5),
        ("", [False] * 5),
    ],
)
def test_the_visits_that_act(specification: str, expected: list[bool]) -> None:
    """Skipped visits pass, counted ones act, later ones and other places pass."""
    assert visits(specification, "here", 5) == expected


def test_sleep_is_in_milliseconds() -> None:
    """A sleep lasts at least as long as it says."""
    started = time.monotonic()

    Failpoints("here=sleep(60)").reach("here")

    assert time.monotonic() - started >= 0.06


@pytest.mark.parametrize("specification", ["here", "here=", "here=fly", "here=sleep", "=kill", "here=*kill", "A=kill"])
def test_what_is_no_specification_is_refused(specification: str) -> None:
    """A mistake is told, with the entry at fault."""
    with pytest.raises(ValueError, match="is not name="):
        Failpoints(specification)


def test_a_name_has_one_action() -> None:
    """Two entries of a name are refused."""
    with pytest.raises(ValueError, match="here is there twice"):
        Failpoints("here=kill;here=stop")


def test_kill_ends_the_process_at_the_place() -> None:
    """The process of the environment's failpoint gets there and no further."""
    with process("here=kill") as visitor:
        output, _ = visitor.communicate()

    assert (output, visitor.returncode) == ("reached\n", -signal.SIGKILL)


def test_stop_stands_still_until_it_is_continued() -> None:
    """The process stops at the place, and goes on when it is told to."""
    with process("here=stop") as visitor:
        _, status = os.waitpid(visitor.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        visitor.send_signal(signal.SIGCONT)
        output, _ = visitor.communicate()

    assert (output, visitor.returncode) == ("reached\npassed\n", 0)


def test_without_the_variable_nothing_happens() -> None:
    """An empty specification is none."""
    with process("") as visitor:
        output, _ = visitor.communicate()

    assert (output, visitor.returncode) == ("reached\npassed\n", 0)
