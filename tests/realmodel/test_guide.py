"""Guarantee: the engine and the worker that the README shows compute together what their model computes alone."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from realmodel.models import build_model
from service.servers import DEADLINE_SECONDS, Server, fast_folder
from service.test_readme import ENGINE, names_after
from statepool import Session

WORKER = """
import json, sys, torch
from realmodel.models import build_model
from service.test_readme import MODEL
from statepool import Client

torch.set_num_threads(1)
exec(MODEL)
with Client(sys.argv[1]) as client:
    for token in run_passes(client, build_model("mamba2").network, map(json.loads, sys.stdin)):
        print(token, flush=True)
"""
PROMPTS = [[*range(20), number] for number in range(3)]
COUNT = 12


def test_the_engine_and_the_worker_of_the_readme() -> None:
    """Prompts that share a prefix are completed by another process, on found states, as the model does alone."""
    computed = 0
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(fast_folder())
        build_model("mamba2").network.config.save_pretrained(folder / "model")
        server = Server(folder / "server", "--model-config", str(folder / "model"), "--tp-size", "1")
        stack.callback(server.stop)
        client = stack.enter_context(server.wait_until_ready().client())
        command = [sys.executable, "-c", WORKER, server.target]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        worker: Any = stack.enter_context(subprocess.Popen(command, cwd=Path(__file__).parents[1], **pipes))

        def forward(session: Session, tokens: list[int], blocks: Any) -> int:
            nonlocal computed
            computed += len(tokens)
            worker.stdin.write(json.dumps([session.session_id, session.epoch, tokens, int(blocks[0])]) + "\n")
            return int(worker.stdout.readline())

        outputs = names_after(ENGINE, server)["generate"](client, PROMPTS, forward, max_tokens=COUNT)
        worker.stdin.close()
        assert worker.wait(DEADLINE_SECONDS) == 0

    alone = [build_model("mamba2").decode(prompt, COUNT)[0][len(prompt) :] for prompt in PROMPTS]
    assert outputs == alone
    assert computed == sum(len(prompt) + COUNT - 1 for prompt in PROMPTS) - 2 * 16  # the second and third found a block
