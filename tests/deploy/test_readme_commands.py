"""Guarantee: every command line of the README runs as it stands there, on files and a server that are its reader's."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from deploy.commands import run
from deploy.server_settings import DOCKER, parsed
from service.servers import Servers
from statepool.cli.app import COMMANDS
from statepool.models import bundled_models

README = (DOCKER.parent / "README.md").read_text(encoding="utf-8")
CLIENT = [line for line in README.splitlines() if re.match(rf"statepool ({'|'.join(COMMANDS)})\b", line)]
SERVER = [line for line in README.splitlines() if line.startswith("statepool-server --")]
TARGETS = sorted({*re.findall(r"`make ([a-z-]+)", README), *re.findall(r"^make ([a-z-]+)", README, re.MULTILINE)})


@pytest.mark.timeout(300)
def test_commands(servers: Servers, tmp_path: Path) -> None:
    """The client's commands run one after the other, load tests for a moment and held to less."""
    server = servers.shared("--num-spec", "2", "--blocks", "257", "--checksums", "scrub")
    shutil.copy(bundled_models()["mamba2"], tmp_path / "config.json")

    assert len(CLIENT) >= 10
    for line in CLIENT:
        if "before.json" in line:
            shutil.copy(tmp_path / "load.json", tmp_path / "before.json")
        is_search = "--find-max" in line
        answer = run(
            *arguments(line, "1us" if is_search else "1h"), env={"STATEPOOL_TARGET": server.target}, cwd=tmp_path
        )

        assert answer.returncode == int(is_search), line + answer.stdout + answer.stderr
        assert ("a rate holds twice: none does" in answer.stderr) is is_search
    assert (tmp_path / "again.html").read_bytes() == (tmp_path / "load.html").read_bytes()


def arguments(line: str, bound: str) -> list[str]:
    """Takes a command line; a busy machine need not be fast, and a search for what cannot be ends soon."""
    line = re.sub(r"--slo (\S+)=\S+", rf"--slo \1={bound}", line)
    line = re.sub(r"(p\d+)<[^ ']+", rf"\1<{bound}", line)
    line = line.replace("--duration 10s", "--duration 5s").replace("--duration 30s", "--duration 300ms")
    return shlex.split(line.replace("p99>1.1x", "p50>1.1x"))[1:]


@pytest.mark.parametrize("line", SERVER)
def test_servers(line: str, tmp_path: Path) -> None:
    """The server takes every command line of its own."""
    config = tmp_path / "config.json"
    shutil.copy(bundled_models()["mamba2"], config)

    assert parsed({}, *shlex.split(line.replace("config.json", str(config)))[1:]).model_config == str(config)


@pytest.mark.parametrize("target", TARGETS)
def test_make(target: str) -> None:
    """Every target that is named exists, and `make help` tells of it."""
    answer = subprocess.run(["make", "-n", target], capture_output=True, text=True, check=False, cwd=DOCKER.parent)
    told = subprocess.run(["make", "help"], capture_output=True, text=True, check=True, cwd=DOCKER.parent).stdout

    assert answer.returncode == 0, answer.stderr
    assert re.search(rf"^{target}\s+\w", told, re.MULTILINE)
