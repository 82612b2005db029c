"""Guarantee: `statepool top` shows what a server does, for people and for scripts, and outlives its server."""

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.servers import CAPACITY, DEADLINE_SECONDS, Server, Servers
from statepool import ALL_RUNNING, Admission, Client, Commits, Schedules

COMMAND = [str(Path(sys.executable).with_name("statepool")), "top", "--interval", "300ms", "--target"]


@pytest.fixture
def steps(client: Client) -> Iterator[None]:
    """Keeps an engine stepping, and some blocks allocated."""
    over = threading.Event()
    with client.create_session(60.0) as session, session.scheduler() as scheduler:
        session.allocate_blocks(3)
        scheduler.step(admit=[Admission(1, 2)], schedule=Schedules([1], 2))

        def step() -> None:
            while not over.wait(0.01):
                scheduler.step(commit=Commits(ALL_RUNNING), schedule=Schedules(ALL_RUNNING))
                scheduler.step(commit=Commits(ALL_RUNNING), finish=[1])
                scheduler.step(admit=[Admission(1, 2)], schedule=Schedules([1], 2))

        engine = threading.Thread(target=step)
        engine.start()
        yield
        over.set()
        engine.join()


@pytest.mark.usefixtures("steps")
def test_json(server: Server) -> None:
    """One look tells occupancy, rates, latencies and sessions."""
    answer = subprocess.run([*COMMAND, server.target, "--once", "--json"], capture_output=True, text=True, check=True)

    facts = json.loads(answer.stdout)
    assert facts["blocks"]["capacity"] == CAPACITY
    assert facts["occupancy"] >= 3 / CAPACITY
    assert facts["per_second"]["steps"] > 1
    assert 0 < facts["step_seconds"]["p50"] <= facts["step_seconds"]["p99"]
    assert facts["hit_rate"] == 0.0
    assert [session["blocks"] >= 3 for session in facts["sessions"]] == [True]
    assert facts["dead_parts"] == []


@pytest.mark.usefixtures("steps")
def test_terminal(server: Server) -> None:
    """In a terminal it fills the screen again and again until Ctrl-C, and leaves it as it was."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": "150", "LINES": "40", "TERM": "xterm"}
    process = subprocess.Popen([*COMMAND, server.target], stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)

    shown = ""
    while shown.count("held") < 3:
        shown += os.read(ours, 65536).decode(errors="replace")
    process.send_signal(signal.SIGINT)
    while chunk := _rest(ours):
        shown += chunk

    assert process.wait(DEADLINE_SECONDS) == 0
    assert "\x1b[?1049h" in shown  # the other screen
    assert "\x1b[?1049l" in shown
    for text in ("hit rate", "occupancy", "quarantined", "sessions", "p99"):
        assert text in shown
    os.close(ours)


def test_pipe(server: Server) -> None:
    """In a pipe look follows look, each written as it is taken, until Ctrl-C."""
    with subprocess.Popen([*COMMAND, server.target], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(2):
            assert any("occupancy" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()

    assert process.returncode == 0
    assert "\x1b" not in rest


def _rest(terminal: int) -> str:
    try:
        return os.read(terminal, 65536).decode(errors="replace")
    except OSError:  # the other end is closed
        return ""


def test_restart(servers: Servers) -> None:
    """A server that is gone is told, and waited for."""
    server = servers.start().wait_until_ready()
    with subprocess.Popen([*COMMAND, server.target, "--json"], stdout=subprocess.PIPE, text=True) as process:
        lines = _lines(process)
        first = next(facts for facts in lines if "blocks" in facts)
        server.kill()
        assert next(facts for facts in lines if "error" in facts)["error"].startswith("no answer: ")
        server.start()
        again = next(facts for facts in lines if "blocks" in facts)
        process.send_signal(signal.SIGINT)

    assert first["incarnation"] != again["incarnation"]


def _lines(process: "subprocess.Popen[str]") -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    for line in process.stdout:
        yield json.loads(line)


def test_no_server(tmp_path: Path) -> None:
    """Without a server there is one line."""
    target = f"unix:{tmp_path / 'none.sock'}"
    answer = subprocess.run([*COMMAND, target], capture_output=True, text=True, check=False, timeout=90)

    assert answer.returncode == 1
    assert answer.stderr.startswith("statepool: no server answers at ")
