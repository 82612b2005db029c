"""Guarantee: a real model with its states in an attached pool, scheduled from elsewhere, computes what it does alone.

Logits are compared bit for bit: after prefix hits, accepted and rejected drafts, and preemption.
"""

import base64
import contextlib
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from realmodel.models import VOCAB_SIZE, build_model
from service.servers import DEADLINE_SECONDS, Server, fast_folder
from statepool import Client, Execution, Session, StepBuilder, StepOutcome

BLOCK_TOKENS = 5
PROMPT = torch.randint(VOCAB_SIZE, (23,), generator=torch.Generator().manual_seed(4)).tolist()
COUNT = 40


class Worker:
    """A worker process, and the lines to and from it."""

    def __init__(self, target: str, model: str) -> None:
        command = [sys.executable, "-m", "realmodel.worker_process", target, model]
        folder = Path(__file__).parents[1]
        self._process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._answer()

    def run(self, **order: Any) -> list[torch.Tensor]:
        """Has passes run; returns the logits of each, ``[tokens, VOCAB_SIZE]``."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        values = [np.frombuffer(base64.b64decode(text), np.float32) for text in self._answer()["logits"]]
        return [torch.from_numpy(logits.reshape(-1, VOCAB_SIZE).copy()) for logits in values]

    def stop(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(DEADLINE_SECONDS) == 0
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


class Request:
    """One request as its scheduler knows it."""

    def __init__(self, name: str, prompt: list[int], source: str | None = None) -> None:
        """Begins a request.

        Args:
            name: Names its keys and values in the worker.
            prompt: Its tokens.
            source: A request whose keys and values its prefix shares.
        """
        self.name, self.tokens, self.source = name, list(prompt), source
        self.found = 0
        self.logits: list[torch.Tensor] = []
        self.running: list[int] = []
        self.num_accepted = 1
        self.drafts: list[int] = []


class Engine:
    """A scheduler that runs one pass of every request at a time, and verifies drafts by greedy decoding."""

    def __init__(self, worker: Worker, session: Session, execution: Execution) -> None:
        self._worker = worker
        self._session = session
        self._execution = execution
        self._committed: list[int] = []
        self.scheduler = session.scheduler(execution=execution)
        self.builder = StepBuilder(BLOCK_TOKENS, namespace="model")
        self.requests: dict[int, Request] = {}

    def admit(self, sequence: int, request: Request) -> None:
        """Begins a request."""
        self.requests[sequence] = request
        self.builder.admit(sequence, request.tokens)
        outcome = self._send()
        request.found = int(outcome.admissions.num_computed_tokens[0])

    def finish(self, sequence: int) -> Request:
        """Ends a request, wherever it is."""
        self.builder.finish(sequence)
        self._send()
        return self.requests.pop(sequence)

    def turn(self, drafts: dict[int, list[int]], budget: int = BLOCK_TOKENS) -> None:
        """Runs a pass of every request: prefill chunks, or the last token with drafts."""
        for sequence, request in self.requests.items():
            request.drafts = drafts.get(sequence, []) if self.builder.num_left(sequence) == 1 else []
            if self.builder.num_left(sequence) > 1:
                self.builder.schedule_prefill(sequence, budget)
            else:
                self.builder.schedule(sequence, 1 + len(request.drafts), len(request.drafts))
        scheduled, outcome = self.builder.scheduled, self._send()
        by_worker = self._execution is Execution.WORKER
        logits = self._worker.run(
            session_id=self._session.session_id,
            epoch=self._session.epoch,
            outcome=base64.b64encode(outcome.to_bytes()).decode() if by_worker else "",
            passes=[self._job(sequence) for sequence in scheduled],
        )
        for sequence, values in zip(scheduled, logits, strict=True):
            self._accept(sequence, self.requests[sequence], values)
        self._committed = scheduled

    def _send(self) -> StepOutcome:
        scheduled, outcome = self.builder.scheduled, self.scheduler.step(**self.builder.step())
        in_place = outcome.post_copies.src_columns == outcome.post_copies.dst_columns
        moved = [self._committed[row] for row in outcome.post_copies.rows[in_place].tolist()]
        for sequence in (*moved, *(scheduled[row] for row in outcome.pre_copies.rows.tolist())):
            if sequence in self.requests:
                self.requests[sequence].num_accepted = 1
        for row, blocks in zip(outcome.tables.rows.tolist(), outcome.tables.block_ids.tolist(), strict=True):
            self.requests[scheduled[row]].running = blocks
        self.builder.applied(outcome)
        self._committed = []
        return outcome

    def _job(self, sequence: int) -> dict[str, Any]:
        request, computed = self.requests[sequence], self.builder.num_computed(sequence)
        tokens = [*request.tokens, *request.drafts][computed : computed + self.builder.num_scheduled(sequence)]
        source, request.source = request.source, None
        return {
            "request": request.name,
            "source": source if computed else None,
            "tokens": tokens,
            "num_computed": computed,
            "running_block_ids": request.running,
            "num_accepted": request.num_accepted,
            "num_drafts": len(request.drafts),
        }

    def _accept(self, sequence: int, request: Request, logits: torch.Tensor) -> None:
        drafts, at_end = request.drafts, self.builder.num_left(sequence) == len(logits) - len(request.drafts)
        first = len(logits) - 1 - len(drafts)
        chosen = logits[first:].argmax(dim=1).tolist()
        accepted = 1
        while accepted <= len(drafts) and drafts[accepted - 1] == chosen[accepted - 1]:
            accepted += 1
        request.logits += logits[: first + accepted]
        news = chosen[:accepted] if at_end else []
        request.tokens += news
        request.num_accepted = max(1, len(news))
        self.builder.commit(sequence, news)


@contextlib.contextmanager
def engine(model: str, num_spec: int, execution: Execution) -> Iterator[tuple[Engine, Client]]:
    """Runs a server sized from the model's own config, a worker attached to it, and a scheduler."""
    with fast_folder() as folder, contextlib.ExitStack() as stack:
        build_model(model).network.config.save_pretrained(folder / "model")
        sizes = ("--model-config", str(folder / "model"), "--tp-size", "1", "--num-spec", str(num_spec))
        server = Server(folder / "server", *sizes, "--block-tokens", str(BLOCK_TOKENS), "--blocks", "40")
        stack.callback(server.stop)
        worker = Worker(server.wait_until_ready().target, model)
        stack.callback(worker.stop)
        client = stack.enter_context(server.client())
        session = stack.enter_context(client.create_session(60.0))
        running = Engine(worker, session, execution)
        with running.scheduler:
            yield running, client


def assert_bit_equal(request: Request, expected: torch.Tensor) -> None:
    """Compares every logit from where a request began."""
    ours = torch.stack(request.logits)
    assert torch.equal(ours, expected[request.found : request.found + len(ours)])


@pytest.mark.parametrize(
    ("model", "execution"),
    [("mamba2", Execution.SERVER), ("qwen3_next", Execution.WORKER), ("lfm2", Execution.WORKER)],
)
def test_prefix_hit(model: str, execution: Execution) -> None:
    """A request that shares a prefix starts from the cached block, and its logits are those without a cache."""
    tokens, expected = build_model(model).decode(PROMPT, COUNT)
    with engine(model, 0, execution) as (running, _):
        first = Request("first", PROMPT)
        running.admit(1, first)
        while len(first.tokens) < len(tokens):
            running.turn({})
        second = Request("second", tokens[:-1], source="first")
        running.admit(2, second)
        while running.builder.num_left(2) > 1:
            running.turn({})

    assert first.tokens[: len(tokens)] == tokens
    assert_bit_equal(first, build_model(model).logits(first.tokens))
    assert second.found == (len(tokens) - 2) // BLOCK_TOKENS * BLOCK_TOKENS
    assert_bit_equal(second, build_model(model).logits(second.tokens))
    assert torch.equal(torch.stack(first.logits)[: len(expected)], expected)


@pytest.mark.parametrize(("model", "execution"), [("mamba2", Execution.WORKER), ("qwen3_next", Execution.SERVER)])
def test_speculation_and_preemption(model: str, execution: Execution) -> None:
    """Drafts of which any number is right, and a preemption in their midst, change no bit of what is decoded."""
    tokens, expected = build_model(model).decode(PROMPT, COUNT)
    chosen = random.Random(2)
    with engine(model, 3, execution) as (running, client):
        request, parts = Request("first", PROMPT), []
        running.admit(1, request)
        for turn in range(200):
            if len(request.tokens) >= len(tokens):
                break
            position, right = len(request.tokens), chosen.randint(0, 3)
            drafts = tokens[position : position + chosen.randint(0, 3)]
            drafts = [token if place < right else (token + 1) % VOCAB_SIZE for place, token in enumerate(drafts)]
            running.turn({1: drafts}, budget=chosen.choice([3, BLOCK_TOKENS, 12]))
            if turn == 12:
                parts.append(running.finish(1))
                request = Request("again", request.tokens, source="first")
                running.admit(1, request)
        usage = client.get_pool().usage

    parts.append(request)
    assert len(parts) == 2
    assert parts[1].found > 0
    assert parts[1].tokens[: len(tokens)] == tokens
    for part in parts:
        count = len(part.logits)
        assert torch.equal(torch.stack(part.logits)[: len(expected) - part.found], expected[part.found :][:count])
    assert usage.quarantined_blocks == 0
