"""Guarantee: what the README shows works as it stands there."""

import re
from pathlib import Path
from typing import Any

import pytest

from service.servers import Server, Servers
from statepool.cli.app import COMMANDS
from statepool_server.cli import execute

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_python_examples(servers: Servers) -> None:
    """The Python examples run against a server; the scheduler's ends with a hit, the worker's with a written state."""
    server = servers.shared("--block-tokens", "256")
    scheduler, worker = (
        _names_after(example, server) for example in re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    )

    assert scheduler["hit"] is not None
    assert scheduler["pool"] is not None
    assert len(worker["outcome"].zeroed_block_ids) == 1
    assert "detached" in str(worker["pool"].error)


def _names_after(example: str, server: Server) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(example.replace("unix:///run/statepool/statepool.sock", server.target), names)  # noqa: S102 - our own text
    return names


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
