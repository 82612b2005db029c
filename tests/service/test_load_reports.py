"""Guarantee: a load test's page and file tell what was measured on a real server, and its exit code what was missed."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from service.servers import Server, Servers, until
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


def load(server: Server, *arguments: str, timeout: float = 90) -> "subprocess.CompletedProcess[str]":
    """Runs a load test."""
    return run("loadtest", "--target", server.target, "--warmup", "0s", *arguments, timeout=timeout)


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
        ("foo.p99<1ms", 2),
    ],
)
def test_thresholds_decide_the_exit_code(server: Server, threshold: str, exit_code: int) -> None:
    """A missed threshold is exit code 1, one that cannot be read is 2; both say why."""
    answer = load(server, *CHURN, "--duration", "200ms", "--threshold", threshold, "--slo", "p99=1h")

    assert answer.returncode == exit_code, answer.stderr
    told = {0: "", 1: f"statepool: {threshold}: ", 2: "measures no 'foo'" if "foo" in threshold else "must look like"}
    assert told[exit_code] in answer.stderr


@pytest.mark.parametrize("flag", ["--json", "--report"])
def test_a_folder_that_is_not_there_is_told_first(server: Server, tmp_path: Path, flag: str) -> None:
    """Before anything is measured; a file that cannot be written is told in one line too."""
    early = load(server, flag, str(tmp_path / "none" / "file"), "--duration", "1h")
    late = load(server, *CHURN, flag, str(tmp_path), "--duration", "100ms")
    both = load(server, "--json", str(tmp_path / "file"), "--report", str(tmp_path / "file"), "--duration", "1h")

    assert (both.returncode, "--report and --json need a file each" in both.stderr) == (2, True)
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
        with server.client() as client:
            until(lambda: client.get_pool().usage.sessions > 0, "the load to begin")
        time.sleep(2.0)  # the warm-up is over
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


def test_nothing_is_measured_in_no_time(server: Server) -> None:
    """A duration of 0 is refused."""
    answer = load(server, "--duration", "0s")

    assert answer.returncode == 2
    assert "--duration" in answer.stderr


def test_json_wants_a_file(server: Server) -> None:
    """Another flag is no file, and is not made one."""
    answer = load(server, "--json", "--report", "page.html")

    assert answer.returncode == 2
    assert "needs a file" in answer.stderr


@pytest.fixture(scope="module")
def two_files(server: Server, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """Measures three runs: one twice, and another one."""
    folder = tmp_path_factory.mktemp("compare")
    files = tuple(str(folder / f"{name}.json") for name in "abc")
    for file, batch in zip(files, ("2", "2", "4"), strict=True):
        answer = load(server, *CHURN, "--duration", "5s", "--batch", batch, "--json", file)
        assert answer.returncode == 0, answer.stderr
    first, second, other = files
    return first, second, other


def test_compare(two_files: tuple[str, str, str]) -> None:
    """Ratios with intervals; one that is far beyond its bound is exit code 1, one that is not is 0."""
    first, second, _ = two_files

    fine = run("loadtest", "compare", first, second, "--fail-if", "p50>50x", "--fail-if", "throughput<0.01x")
    missed = run("loadtest", "compare", first, second, "--fail-if", "commit.p50>1x")

    assert fine.returncode == 0, fine.stderr
    assert re.search(r"all +p50 .* \d\.\d+ … \d+\.\d+ +(noise|better|worse)", fine.stdout)
    assert "not judged" not in fine.stdout
    assert missed.returncode == 1
    assert missed.stderr == "statepool: not commit.p50>1x: no such operation in both runs\n"


def test_compare_what_differs(two_files: tuple[str, str, str]) -> None:
    """Runs that differ are shown without judgement, and cannot pass or fail."""
    first, _, other = two_files

    shown = run("loadtest", "compare", first, other)
    bound = run("loadtest", "compare", first, other, "--fail-if", "p50>50x")

    assert shown.returncode == 0
    assert "configuration batch: 2 → 4" in shown.stdout
    assert not re.search("noise|better|worse|…", shown.stdout)
    assert bound.returncode == 2
    assert "cannot be compared" in bound.stderr


def test_compare_wants_reports_and_bounds(two_files: tuple[str, str, str], tmp_path: Path) -> None:
    """Other files and other bounds are exit code 2, and one line."""
    first, second, _ = two_files
    for arguments in ((first, str(tmp_path / "none.json")), (first, second, "--fail-if", "p99")):
        answer = run("loadtest", "compare", *arguments)

        assert answer.returncode == 2
        assert len(answer.stderr.splitlines()) == 1


@pytest.mark.timeout(450)
@pytest.mark.parametrize(
    ("workload", "threshold"),
    [("blocks", "p90<250ms"), pytest.param("align", "first_token.p90<2s", marks=pytest.mark.slow)],
)
def test_find_max(server: Server, tmp_path: Path, workload: str, threshold: str) -> None:
    """The rate that is found has held twice and another has not; every probe is told, in file and page too."""
    file, page = tmp_path / "report.json", tmp_path / "report.html"
    flags = ("--workload", workload, "--mix", "churn", "--engines", "1", "--output-tokens", "4", "--verify", "0")

    answer = load(
        server,
        *(*flags, "--duration", "1s", "--find-max", "--threshold", threshold),
        *("--json", str(file), "--report", str(page)),
        timeout=400,
    )

    check_schema(file)
    report = read_report(file)
    assert answer.returncode == 0, answer.stderr
    assert len([line for line in answer.stderr.splitlines() if "served per second" in line]) == len(report.probes) > 3
    assert [probe.holds for probe in report.probes if probe.rate == report.options.rate].count(True) == 2
    assert any(not probe.holds for probe in report.probes)
    assert "confirmed" in answer.stderr
    assert page.read_text(encoding="utf-8").count("<circle") == len(report.probes) - 1


def test_find_max_where_none_holds(server: Server) -> None:
    """Exit code 1 where no rate holds, 2 where nothing is said about what must."""
    none = load(server, *CHURN, "--find-max", "--rate", "16", "--duration", "500ms", "--slo", "p50=1us")
    nothing = load(server, "--find-max")

    assert none.returncode == 1
    assert "a rate holds twice: none does" in none.stderr
    assert nothing.returncode == 2
    assert "--slo or a --threshold" in nothing.stderr
