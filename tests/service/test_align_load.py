"""Guarantee: the align workload drives real sequences through all that can happen to them, and sees wrong bytes."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.servers import DEADLINE_SECONDS, Server, Servers
from service.test_commands import STATEPOOL

TIGHT = ("--num-spec", "2", "--blocks", "25")
"""Two speculative tokens, and fewer blocks than two engines want."""


def command(server: Server, *arguments: str, verify: str = "1", seconds: int = 2) -> list[str]:
    """Writes a short run."""
    common = (
        "--target",
        server.target,
        "--duration",
        f"{seconds}s",
        "--warmup",
        "0s",
        "--verify",
        verify,
        "--json",
        "-",
    )
    return [str(STATEPOOL), "loadtest", *common, *arguments]


def run(server: Server, *arguments: str, verify: str = "1", seconds: int = 2) -> tuple[int, dict[str, Any]]:
    """Runs the load test; returns its exit code and its report."""
    answer = subprocess.run(
        command(server, *arguments, verify=verify, seconds=seconds),
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_SECONDS,
    )
    assert answer.stdout, answer.stderr
    return answer.returncode, json.loads(answer.stdout)


RUN_SECONDS = (2, 2, 4, 8, 16)
"""A slow machine may see too little happen in a short run; usually it is all there in the first."""


def run_until_seen(server: Server, events: set[str]) -> None:
    """Runs the load test, again and again if need be, until all of these were counted; none may find anything wrong."""
    missing = set(events)
    for seconds in RUN_SECONDS:
        code, report = run(server, seconds=seconds)
        assert (code, report["mismatches"], report["errors"]) == (0, [], {})
        seen = {**report["counts"], **{kind: row["count"] for kind, row in report["operations"].items()}}
        missing -= {what for what, count in {**seen, "verified": report["verified"]}.items() if count}
        if not missing:
            break
    assert missing == set()


@pytest.mark.parametrize("arrangement", ["block-major", "layer-major"])
def test_closed_loop(servers: Servers, arrangement: str) -> None:
    """Evictions, speculation and preemption leave every state as it must be."""
    server = servers.shared(*TIGHT, "--arrangement", arrangement)

    steps = {"step_quiet", "step_copies", "step_admissions", "step_refused"}
    counts = {"preemptions", "finished", "generated_tokens", "copies", "verified"}
    run_until_seen(server, steps | counts | {"first_token", "read", "write"})


@pytest.mark.parametrize("arrangement", ["block-major", "layer-major"])
def test_hits(servers: Servers, arrangement: str) -> None:
    """Where there is room, prefixes are found, and what begins with them is as it must be."""
    server = servers.shared("--num-spec", "2", "--blocks", "257", "--arrangement", arrangement)

    run_until_seen(server, {"hit_tokens", "finished", "copies", "verified"})


def test_conv_layout_ds(servers: Servers) -> None:
    """The same holds where conv states have the tokens innermost."""
    server = servers.shared("--num-spec", "2", "--blocks", "257", "--conv-layout", "DS", conv_shape=(8, 4))

    run_until_seen(server, {"hit_tokens", "copies", "verified"})


def test_open_loop_with_several_processes(servers: Servers) -> None:
    """Requests arrive at a rate, whoever serves them; only a share of them is verified."""
    server = servers.shared("--num-spec", "2", "--blocks", "257")

    code, report = run(server, "--rate", "20", "--processes", "2", "--output-tokens", "8", verify="0.5")

    assert (code, report["mismatches"], report["errors"]) == (0, [], {})
    assert 0 < report["counts"]["finished"] < 20 * 2 * 3
    assert report["verified"] > 0


def test_corrupted_bytes_are_reported(servers: Servers) -> None:
    """Bytes that change behind the server's back are mismatches, and the exit code is 1."""
    server = servers.start(*TIGHT).wait_until_ready()
    arenas = [np.memmap(path, np.uint8, "r+") for path in arena_files(server)]

    with subprocess.Popen(command(server), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            for arena in arenas:
                arena += 1
        report = json.loads(process.communicate()[0])

    assert process.returncode == 1
    assert report["mismatches"]
    assert set(report["errors"]) <= {"read: ChecksumMismatchError"}  # of those that changed while they were read


def arena_files(server: Server) -> list[Path]:
    """Finds the arena of each rank."""
    files = sorted(server.state_dir.glob("*.arena"))
    assert len(files) == 2
    return files
