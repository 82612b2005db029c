"""Guarantee: the commands that an operator types work against a real server, and say in one line when they cannot."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from service.servers import CAPACITY, Server, Servers
from statepool import Client

STATEPOOL = Path(sys.executable).with_name("statepool")


def run(*arguments: str, timeout: float = 90) -> "subprocess.CompletedProcess[str]":
    """Runs the client's command."""
    return subprocess.run([STATEPOOL, *arguments], capture_output=True, text=True, check=False, timeout=timeout)


def load_blocks(server: Server, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Runs the blocks workload."""
    return run("loadtest", "--workload", "blocks", "--target", server.target, *arguments)


def test_info(server: Server) -> None:
    """`info` shows the pool and the server, for people and as JSON."""
    table, machine = run("info", "--target", server.target), run("info", "--target", server.target, "--json")

    assert table.returncode == machine.returncode == 0, table.stderr + machine.stderr
    assert "custom" in table.stdout
    assert json.loads(machine.stdout)["pool"]["capacity"] == CAPACITY


def test_blocks(server: Server, client: Client) -> None:
    """`blocks` lists the blocks of a session."""
    with client.create_session(60.0) as session:
        blocks = session.allocate_blocks(3)

        listed = run("blocks", "--target", server.target, "--session", str(session.session_id), "--json")

    assert listed.returncode == 0, listed.stderr
    for block_id in blocks.block_ids.tolist():
        assert f'"block_id": {block_id}' in listed.stdout


@pytest.mark.parametrize("session", [-1, 0, 2**64])
def test_no_session_has_such_an_id(session: int) -> None:
    """A number that no session can have is a wrong call, whatever server there is."""
    answer = run("blocks", "--session", str(session))

    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.startswith("statepool: Invalid value")
    assert answer.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["info", "blocks", "loadtest"])
def test_no_server(command: str, tmp_path: Path) -> None:
    """Without a server a command ends with one line and exit code 1."""
    answer = run(command, "--target", f"unix:{tmp_path / 'none.sock'}")

    assert answer.returncode == 1
    assert answer.stderr.strip().splitlines()[-1].startswith("statepool: ")
    assert "Traceback" not in answer.stderr


@pytest.fixture(scope="module")
def roomy(servers: Servers) -> Server:
    """Gives a server with room for a load test's lanes."""
    return servers.shared("--blocks", "257")


@pytest.mark.parametrize("mix", ["mixed", "state", "prefix", "churn"])
def test_closed_loop(roomy: Server, mix: str) -> None:
    """A closed loop measures, verifies, and reports no error and no mismatch."""
    answer = load_blocks(
        roomy,
        *("--mix", mix, "--duration", "500ms", "--warmup", "100ms", "--verify", "1", "--batch", "4", "--json", "-"),
    )

    report = json.loads(answer.stdout)
    assert answer.returncode == 0, answer.stderr
    assert report["operations"]["all"]["count"] > 0
    assert report["errors"] == {}
    assert report["mismatches"] == []
    if mix == "state":
        assert report["verified"] > 0
        assert report["counts"]["copied_bytes"] > 0


def test_open_loop_with_several_processes(roomy: Server) -> None:
    """An open loop sends at its rate whatever the answers take; the results of all processes are added up."""
    answer = load_blocks(
        roomy,
        *("--mix", "churn", "--duration", "1s", "--warmup", "0s"),
        *("--rate", "50", "--processes", "2", "--concurrency", "4", "--json", "-"),
    )

    report = json.loads(answer.stdout)
    assert answer.returncode == 0, answer.stderr
    assert 0 < report["operations"]["all"]["count"] <= 50 + 2 * 4


def test_report_for_people(roomy: Server) -> None:
    """Without --json the report is a table of percentiles and a summary."""
    answer = load_blocks(roomy, "--duration", "300ms", "--warmup", "0s")

    assert answer.returncode == 0, answer.stderr
    for word in ("p99.9 ms", "allocate", "GB/s", "mismatches", "errors"):
        assert word in answer.stdout


@pytest.mark.parametrize(
    ("slo", "exit_code"),
    [("p99=1h", 0), ("p50=1us", 1), ("allocate.p99=1h", 0), ("commit.p99=1h", 1), ("nothing.p99=1h", 2)],
)
def test_objectives_decide_the_exit_code(roomy: Server, slo: str, exit_code: int) -> None:
    """A missed objective is exit code 1, one that cannot be kept is 2; both say why."""
    answer = load_blocks(roomy, "--mix", "churn", "--duration", "200ms", "--warmup", "0s", "--slo", slo)

    assert answer.returncode == exit_code
    assert exit_code == 0 or slo.split("=")[0] in answer.stderr


def test_demo() -> None:
    """The demo starts a server for a real model, verifies its bytes and stops it cleanly."""
    answer = run("demo", "--duration", "2s", "--memory", "128MiB")

    assert answer.returncode == 0, answer.stderr
    assert " 0 comparisons" not in answer.stdout
    assert "0 mismatches" in answer.stdout
    assert "stopped cleanly" in answer.stderr
