"""Guarantee: what the README shows works as it stands there."""

import contextlib
import re
from pathlib import Path
from typing import Any

import pytest

from service.servers import BLOCK_TOKENS, Server, Servers
from statepool import Admission, Commits, Schedules, Session
from statepool.cli.app import COMMANDS
from statepool_server.cli.command import execute

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
CALLS, ENGINE, MOVE, DIRECTORY, WORKER, MODEL = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_calls_and_worker(servers: Servers) -> None:
    """The example of single calls ends with a hit, the worker's with a written state."""
    server = servers.shared("--block-tokens", "256")
    scheduler, worker = names_after(CALLS, server), names_after(WORKER, server)

    assert scheduler["hit"] is not None
    assert scheduler["pool"] is not None
    assert len(worker["outcome"].zeroed_block_ids) == 1
    assert "detached" in str(worker["pool"].error)


def names_after(example: str, server: Server) -> dict[str, Any]:
    """Runs an example against a server; returns what it has named."""
    names: dict[str, Any] = {}
    exec(example.replace("unix:///run/statepool/statepool.sock", server.target), names)  # noqa: S102 - our own text
    return names


@pytest.mark.parametrize("blocks", [7, 17])
def test_engine(servers: Servers, blocks: int) -> None:
    """The engine completes its prompts, preempting when blocks run out, and finds prefixes where there is room."""
    server = servers.shared("--blocks", str(blocks))
    names = names_after(ENGINE, server)
    prompts = [[*range(20), number] for number in range(5)]
    passes: list[int] = []

    def forward(session: Session, tokens: list[int], blocks: Any) -> int:
        assert tokens
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


def test_move(servers: Servers) -> None:
    """The example of a move begins the sequence on the other server with all that was computed on the first."""
    source, destination = servers.shared(), servers.shared("--tp-ranks", "0,1")
    with (
        source.client() as here,
        destination.client() as there,
        here.create_session(60.0) as prefill,
        there.create_session(60.0) as decode,
    ):
        prefill.step(1, admit=[Admission(7, 40)])
        prefill.step(2, schedule=Schedules([7], 20))
        prefill.step(3, commit=Commits([7]))

        admission = names_after(MOVE, source)["hand_over"](7, 40, prefill, decode)

        assert decode.step(1, admit=[admission]).admissions.num_computed_tokens.tolist() == [20]


def test_directory(servers: Servers) -> None:
    """The example of a directory finds, at both servers, what was committed there."""
    both = servers.shared(), servers.shared("--tp-ranks", "0,1")
    example = DIRECTORY.replace("unix:///run/b.sock", both[1].target)
    with contextlib.ExitStack() as stack:
        sessions = [stack.enter_context(stack.enter_context(server.client()).create_session(60.0)) for server in both]
        for session in sessions:
            blocks = session.allocate_blocks(1)
            session.commit_blocks(
                blocks,
                prefix_hashes=[b"hash"],
                boundary_tokens=[BLOCK_TOKENS],
                written_through_tokens=[BLOCK_TOKENS],
                namespace="m",
            )

        hits = names_after(example.replace("unix:///run/a.sock", both[0].target), both[0])["hits"]
        for session in sessions:
            session.evict_blocks(prefix_hashes=[b"hash"], namespace="m")

    assert [hit.server for hit in hits] == [server.target for server in both]


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
