"""Guarantee: what the operators' guide says is so: its commands run, its table is calculated, its faults exist."""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from deploy.commands import run
from deploy.kubernetes import build, sidecar
from deploy.server_settings import DOCKER, parsed
from service.servers import Server, Servers
from statepool import Admission, Commits, Schedules
from statepool.cli.app import run as execute
from statepool.errors import BY_REASON
from statepool.models import bundled_models
from statepool.units import format_bytes

GUIDE = (DOCKER / "README.md").read_text(encoding="utf-8")
LINES = [line for block in re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL) for line in block.splitlines()]
SIZES = (1, 8)
"""Tensor-parallel sizes of the table."""


def lines(*starts: str) -> list[str]:
    """Takes the guide's command lines that begin with one of these."""
    return [line for line in LINES if line.startswith(starts)]


@pytest.fixture(scope="module")
def roomy(servers: Servers) -> Server:
    """Gives a server with room for a load test."""
    return servers.shared("--blocks", "257")


@pytest.mark.parametrize("line", lines("statepool "))
def test_commands(roomy: Server, line: str) -> None:
    """Every command of the client runs against a server, the load test for a moment and without its objective."""
    command = line.replace("path/to/config.json", str(bundled_models()["mamba2"]))
    command = re.sub(r"--slo (\S+)=\S+", r"--slo \1=1h", command).replace("--duration 10s", "--duration 300ms")

    answer = run(*shlex.split(command)[1:], env={"STATEPOOL_TARGET": roomy.target})

    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.parametrize("line", lines("statepool-server "))
def test_servers(line: str) -> None:
    """The server takes every command line of its own."""
    assert parsed({}, *shlex.split(line)[1:]).model_config in bundled_models()


@pytest.mark.parametrize("line", lines("make "))
def test_make(line: str) -> None:
    """Every target exists and passes the variables on."""
    answer = subprocess.run(shlex.split(f"{line} -n"), capture_output=True, text=True, check=False, cwd=DOCKER.parent)

    assert answer.returncode == 0, answer.stderr
    for value in re.findall(r"[A-Z]+=(\S+)", line):
        assert value.strip("'") in answer.stdout


def test_files() -> None:
    """Every file and folder that a command names is there, and no command is left unchecked but those of engines."""
    checked = ("statepool ", "statepool-server ", "make ", "kubectl kustomize ")
    others = {line.split()[0] for line in LINES if not line.startswith(checked)}

    assert others <= {"docker", "kubectl", "install", "useradd", "systemctl"}
    for name in {word for line in LINES for word in shlex.split(line) if word.startswith("docker/")}:
        assert (DOCKER.parent / name).exists(), name


def test_kubectl() -> None:
    """The example builds, and the doctor's command line names a job and a container of it."""
    (kustomize,), (doctor,) = lines("kubectl kustomize "), lines("kubectl exec ")
    job = build(DOCKER.parent / kustomize.split()[-1])["Job"]

    assert f"job/{job['metadata']['name']}" in doctor
    assert f"--container {sidecar(job)['name']} " in doctor


def test_sizing_table() -> None:
    """The table is what `statepool shapes` calculates for the configs that ship."""
    written = GUIDE.partition("<!-- sizing -->\n")[2].partition("<!-- /sizing -->")[0]
    calculated = "".join(f"{row}\n" for row in sizing_rows())

    assert written == calculated, calculated


def sizing_rows() -> Iterator[str]:
    """Calculates the table, row by row."""
    yield "| `--model-config` | family, layers | " + " | ".join(f"block, tp {n} | blocks" for n in SIZES) + " |"
    yield "|---|---|" + "---:|" * 2 * len(SIZES)
    for name in sorted(bundled_models()):
        facts = {n: shapes_of(name, n) for n in SIZES}
        cells = [f"{format_bytes(f['block_bytes'])} | {f['block_count']:,}" if f else "— | —" for f in facts.values()]
        yield f"| {name} | {facts[1]['family']}, {len(facts[1]['state_layers'])} | {' | '.join(cells)} |"


def shapes_of(name: str, tp_size: int) -> dict[str, Any]:
    """Asks `statepool shapes`, in this process; empty: the model cannot be split so."""
    arguments = ["--model-config", name, "--tp-size", str(tp_size), "--memory", "16GiB", "--json"]
    with redirect_stdout(StringIO()) as answer, redirect_stderr(StringIO()) as error:
        exit_code = execute(["shapes", *arguments])
    if exit_code:
        assert "not divisible" in error.getvalue()
        return {}
    return dict(json.loads(answer.getvalue()))


def test_blocks_of_a_sequence(servers: Servers) -> None:
    """A sequence that runs over boundaries holds at most as many blocks as the guide counts for it."""
    num_spec, held = 2, []
    server = servers.shared("--num-spec", str(num_spec), "--block-tokens", "16")
    with server.client() as client, client.create_session(60.0) as session:
        for number in range(1, 60):
            session.step(
                number,
                admit=[Admission(sequence_id=1, prompt_tokens=1)] if number == 1 else [],
                commit=Commits([1], 1 + number % (1 + num_spec)) if number > 1 else None,
                schedule=Schedules([1], 1 + num_spec, num_spec),
            )
            held.append(client.get_pool().usage.held_blocks)

    assert max(held) == 2 + num_spec


def test_faults() -> None:
    """Every reason and message in the table of faults is one of the server's, and every flag exists."""
    table = GUIDE.partition("## When something fails")[2]
    first_cells = re.findall(r"^\| (.*?) \|", table, re.MULTILINE)[1:]
    source = "".join(path.read_text(encoding="utf-8") for path in (DOCKER.parent / "server").rglob("*.py"))
    seen = [word for cell in first_cells for word in re.findall(r"`([^`]+)`", cell)]

    assert len([word for word in seen if word.isupper()]) > 5
    for reason in (word for word in seen if re.fullmatch(r"[A-Z]+_?[A-Z]+", word) and word != "NOT_SERVING"):
        assert reason in BY_REASON
    for message in (word for word in seen if " " in word and "statepool" not in word):
        for part in message.split(" … "):
            assert part in re.sub(r"\"\s*\n\s*f?\"", "", source), part
    settings = Path(DOCKER.parent / "server/statepool_server/config.py").read_text(encoding="utf-8")
    for flag in re.findall(r"`--((?:max|drain|state|copy|block)-[a-z-]+)", GUIDE):
        assert flag.replace("-", "_") in settings
