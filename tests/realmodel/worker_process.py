"""A worker process: attaches to a pool, and runs a real model whose states stand in the pool's blocks.

It reads one order per line of standard input and writes one answer per line of standard output, both JSON.
"""

import base64
import contextlib
import json
import sys
from typing import Any

import torch

from realmodel.models import build_model
from realmodel.runner import StateRunner
from statepool import Client, StepOutcome
from statepool.torch import AttachedPool, attach


def obey(order: dict[str, Any], pool: AttachedPool, runner: StateRunner) -> dict[str, Any]:
    """Runs the copies of a step where the worker is to, then its passes."""
    answers = []
    with pool.writing(order["session_id"], order["epoch"]):
        if order["outcome"]:
            pool.run_copies(StepOutcome.from_bytes(base64.b64decode(order["outcome"])))
        for job in order["passes"]:
            source = job.pop("source")
            if source is not None:
                runner.reuse_attention(source, job["request"])
            logits = runner.forward(job.pop("request"), job.pop("tokens"), **job)
            answers.append(base64.b64encode(logits.numpy().tobytes()).decode())
    return {"logits": answers}


def main(target: str, model: str) -> None:
    """Serves orders until standard input ends."""
    torch.set_num_threads(1)  # sums of another order would round otherwise than the scheduler's own model
    with Client(target) as client, contextlib.ExitStack() as stack:
        pool = stack.enter_context(attach(client))
        runner = StateRunner(build_model(model), pool.views, pool.description.layout.block)
        print(json.dumps({"ready": pool.description.block_count}), flush=True)
        for line in sys.stdin:
            print(json.dumps(obey(json.loads(line), pool, runner)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
