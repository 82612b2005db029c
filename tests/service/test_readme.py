"""Guarantee: what the README shows works as it stands there."""

import re
from pathlib import Path
from typing import Any

import pytest

from service.servers import Servers
from statepool.cli.app import COMMANDS
from statepool_server.cli import execute

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_calls(servers: Servers) -> None:
    """The example of single calls runs against a server, and ends with a hit."""
    server = servers.shared("--block-tokens", "256")
    example = EXAMPLES[0]
    names: dict[str, object] = {}

    exec(example.replace("unix:///run/statepool/statepool.sock", server.target), names)  # noqa: S102 - our own text

    assert names["hit"] is not None
    assert names["pool"] is not None


@pytest.mark.parametrize("blocks", [7, 17])
def test_engine(servers: Servers, blocks: int) -> None:
    """The engine completes its prompts, preempting when blocks run out, and finds prefixes where there is room."""
    server = servers.shared("--blocks", str(blocks))
    names: dict[str, Any] = {}
    exec(EXAMPLES[1], names)  # noqa: S102 - our own text
    prompts = [[*range(20), number] for number in range(5)]
    passes: list[int] = []

    def forward(number: int, blocks: Any) -> int:
        passes.append(int(blocks[0]))
        return len(passes) % 50

    with server.client() as client:
        first = names["generate"](client, prompts, forward, max_tokens=30)
        before = len(passes)
        second = names["generate"](client, [prompts[0]], forward, max_tokens=1)
        usage = client.get_pool().usage

    assert [len(output) for output in first + second] == [30] * 5 + [1]
    assert (usage.held_blocks, usage.sequences) == (0, 0)
    assert all(block > 0 for block in passes)
    if blocks == 17:
        assert len(passes) - before == 1  # the first chunk was found


def test_flags_and_commands_exist(capsys: pytest.CaptureFixture[str]) -> None:
    """Every flag of the server's table is one of its flags, and every command that is shown is one."""
    table = re.findall(r"^\| (`--.*?) \|", README, re.MULTILINE)
    flags = {flag for row in table for flag in re.findall(r"--[a-z-]+", row)}

    assert execute(["--help"]) == 0
    shown = capsys.readouterr().out

    assert len(flags) > 8
    assert [flag for flag in flags if flag not in shown] == []
    commands = re.findall(r"^statepool ([a-z]+)(?: --.*)?$", README, re.MULTILINE)
    assert len(commands) >= 4
    assert set(commands) <= set(COMMANDS)
