"""Guarantee: a load test's page and file tell what was measured on a real server, and its exit code what was missed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from service.servers import Server, Servers
from service.test_commands import run
from statepool.loadtest.distribution import bucket_counts, bucket_values
from statepool.loadtest.page import render
from statepool.loadtest.report import Report, read_report

SCHEMA = files("statepool.loadtest") / "report.schema.json"
CHURN = ("--workload", "blocks", "--mix", "churn")


@pytest.fixture(scope="module")
def server(servers: Servers) -> Server:
    """Gives a server with room for a load test."""
    return servers.shared("--num-spec", "2", "--blocks", "257")


def load(server: Server, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Runs a load test."""
    return run("loadtest", "--target", server.target, "--warmup", "0s", *arguments)


def check_schema(path: Path) -> None:
    """Holds a file to the schema that ships."""
    command = [str(Path(sys.executable).with_name("check-jsonschema")), "--schemafile", str(SCHEMA), str(path)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)

    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("workload", ["align", "blocks"])
def test_file_and_page(server: Server, tmp_path: Path, workload: str) -> None:
    """The file keeps to its schema and adds up; the page is what is drawn of the file again."""
    file, page, again = tmp_path / "report.json", tmp_path / "report.html", tmp_path / "again.html"

    answer = load(server, "--workload", workload, "--duration", "2s", "--json", str(file), "--report", str(page))
    drawn = run("loadtest", "draw", str(file), str(again))

    assert (answer.returncode, drawn.returncode) == (0, 0), answer.stderr + drawn.stderr
    assert "p99 ms" in answer.stdout
    check_schema(file)
    values = json.loads(file.read_text(encoding="utf-8"))
    check_sums(values, read_report(file))
    assert len(values["slices"]) == len(values["usage"]) == 2
    assert all(
        sum(sample[kind] for kind in ("held", "releasing", "evictable", "free")) == 256 for sample in values["usage"]
    )
    assert values["facts"]["pool"]["capacity"] == 256
    assert 0 < values["cpu_shares"][0] < 2
    assert page.read_bytes() == again.read_bytes() == render(read_report(file))


def check_sums(values: dict[str, Any], report: Report) -> None:
    """Checks that the slices make up what is told of the whole."""
    for name, histogram in report.total().histograms.items():
        assert values["operations"][name]["count"] == histogram.get_total_count()
    assert values["operations"]["all"]["count"] == sum(each.operations for each in report.slices) > 0
    for what, count in values["counts"].items():
        assert count == sum(each.counts[what] for each in report.slices)
    assert all(verdict["holds"] for verdict in values["thresholds"])


@pytest.mark.parametrize(
    ("threshold", "exit_code"),
    [
        ("p99<1h", 0),
        ("throughput>1/s", 0),
        ("errors<0.1%", 0),
        ("p50<=1us", 1),
        ("throughput>1000000/s", 1),
        ("commit.max<1h", 1),
        ("p99", 2),
    ],
)
def test_thresholds_decide_the_exit_code(server: Server, threshold: str, exit_code: int) -> None:
    """A missed threshold is exit code 1, one that cannot be read is 2; both say why."""
    answer = load(server, *CHURN, "--duration", "200ms", "--threshold", threshold, "--slo", "p99=1h")

    assert answer.returncode == exit_code, answer.stderr
    assert exit_code == 0 or f"statepool: {threshold}: measured" in answer.stderr or "must look like" in answer.stderr


@pytest.mark.parametrize("flag", ["--json", "--report"])
def test_a_folder_that_is_not_there_is_told_first(server: Server, tmp_path: Path, flag: str) -> None:
    """Before anything is measured; a file that cannot be written is told in one line too."""
    early = load(server, flag, str(tmp_path / "none" / "file"), "--duration", "1h")
    late = load(server, *CHURN, flag, str(tmp_path), "--duration", "100ms")

    assert early.returncode == 2
    assert "is no folder" in early.stderr
    assert late.returncode == 1
    assert late.stderr.strip().endswith("Is a directory")


def test_only_reports_are_drawn(tmp_path: Path) -> None:
    """Another file is refused with one line and exit code 2."""
    other = tmp_path / "other.json"
    other.write_text("{}", encoding="utf-8")

    answer = run("loadtest", "draw", str(other), str(tmp_path / "page.html"))

    assert answer.returncode == 2
    assert answer.stderr == f"statepool: {other}: not a load-test report\n"


@pytest.mark.parametrize("workload", ["align", "blocks"])
def test_a_stall_is_seen_by_all_that_it_held_up(servers: Servers, tmp_path: Path, workload: str) -> None:
    """In an open loop a server that stands still for a second delays whatever comes meanwhile."""
    server, file = servers.start("--num-spec", "2", "--blocks", "257").wait_until_ready(), tmp_path / "report.json"
    flags = ("--workload", workload, "--concurrency", "4", "--engines", "1", "--output-tokens", "2", "--mix", "churn")

    def stall() -> None:
        time.sleep(2.5)  # the clients take a moment to begin
        os.kill(server.process.pid, signal.SIGSTOP)
        time.sleep(1.0)
        os.kill(server.process.pid, signal.SIGCONT)

    stalling = threading.Thread(target=stall)
    stalling.start()
    answer = load(server, *flags, "--rate", "40", "--verify", "0", "--duration", "6s", "--json", str(file))
    stalling.join()

    assert answer.returncode == 0, answer.stderr
    counts = bucket_counts(read_report(file).total().latencies("first_token" if workload == "align" else "all"))
    late = [int(counts[bucket_values() > seconds * 1e9].sum()) for seconds in (0.2, 0.4, 0.6)]
    assert late[0] >= 20
    assert late[0] > late[1] > late[2]


def test_json_wants_a_file(server: Server) -> None:
    """Another flag is no file, and is not made one."""
    answer = load(server, "--json", "--report", "page.html")

    assert answer.returncode == 2
    assert "needs a file" in answer.stderr
