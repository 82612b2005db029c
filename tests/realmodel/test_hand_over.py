"""Guarantee: a prompt that a model computes in one place is gone on with in another as if it had never moved.

Two servers, a worker process attached to each, and the reference router between them; logits are compared bit for bit.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
import torch

from realmodel.models import build_model
from realmodel.test_end_to_end import BLOCK_TOKENS, COUNT, PROMPT, Worker
from service.servers import Server, fast_folder
from statepool import AsyncClient, AsyncScheduler, AsyncSession, StepBuilder, prefix_hashes
from statepool.disagg import Moved, Request, Router

MODEL = "mamba2"
"""All that it knows of a prompt is in its states; keys and values of hybrid models move on ways of their own."""


class Engine:
    """Computes prompts, or goes on from states, one sequence after the other."""

    def __init__(self, worker: Worker, session: AsyncSession, scheduler: AsyncScheduler) -> None:
        self.session = session
        self.computed = 0
        self._worker = worker
        self._scheduler = scheduler
        self._builder = StepBuilder(BLOCK_TOKENS, namespace=MODEL)
        self._running: list[int] = []

    async def prefill(self, request: Request) -> int:
        """Computes a prompt but for its last token."""
        self._builder.admit(request.request_id, request.token_ids)
        await self._step()
        while self._builder.num_left(request.request_id) > 1:
            count = self._builder.num_left(request.request_id) - 1
            self._builder.schedule(request.request_id, min(count, BLOCK_TOKENS))
            await self._pass(request.request_id, list(request.token_ids))
            self._builder.commit(request.request_id)
        await self._step()
        return request.request_id

    async def release(self, sequence_id: int) -> None:
        """Finishes a sequence."""
        self._builder.finish(sequence_id)
        await self._step()

    async def decode(self, request: Request, state: Moved) -> tuple[list[int], torch.Tensor]:
        """Decodes greedily; returns all tokens, and the logits of those that were computed here."""
        tokens, logits = list(request.token_ids), []
        self._builder.admit(request.request_id, tokens, imported=state.imported)
        await self._step()
        while len(tokens) < len(request.token_ids) + COUNT:
            self._builder.schedule(request.request_id, 1)
            logits.append(await self._pass(request.request_id, tokens))
            tokens.append(int(logits[-1][-1].argmax()))
            self._builder.commit(request.request_id, tokens[-1:])
        await self.release(request.request_id)
        return tokens, torch.cat(logits)

    async def _step(self) -> None:
        outcome = await self._scheduler.step(**self._builder.step())
        if len(outcome.tables.rows):
            self._running = outcome.tables.block_ids[0].tolist()
        self._builder.applied(outcome)

    async def _pass(self, sequence_id: int, tokens: list[int]) -> torch.Tensor:
        await self._step()
        computed, count = self._builder.num_computed(sequence_id), self._builder.num_scheduled(sequence_id)
        self.computed += count
        job = {
            "request": str(sequence_id),
            "source": None,
            "tokens": tokens[computed : computed + count],
            "num_computed": 0,  # of keys and values, of which there are none
            "running_block_ids": self._running,
        }
        order = {"session_id": self.session.session_id, "epoch": self.session.epoch, "outcome": "", "passes": [job]}
        (logits,) = await asyncio.to_thread(lambda: self._worker.run(**order))
        return logits


@contextlib.asynccontextmanager
async def engine(num_spec: int) -> AsyncIterator[Engine]:
    """Runs a server, a worker that is attached to it, and a scheduler."""
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(fast_folder())
        build_model(MODEL).network.config.save_pretrained(folder / "model")
        sizes = ("--model-config", str(folder / "model"), "--tp-size", "1", "--num-spec", str(num_spec))
        server = Server(folder / "server", *sizes, "--block-tokens", str(BLOCK_TOKENS), "--blocks", "40")
        stack.callback(server.stop)
        await asyncio.to_thread(server.wait_until_ready)
        worker = Worker(server.target, MODEL)
        stack.callback(worker.stop)
        client = await stack.enter_async_context(AsyncClient(server.target))
        session = await stack.enter_async_context(await client.create_session(60.0))
        yield Engine(worker, session, await stack.enter_async_context(session.scheduler()))


@pytest.mark.parametrize("num_spec", [0, 2], ids=["same layout", "converted"])
async def test_prefill_here_decode_there(num_spec: int) -> None:
    """The router has prompts computed here and decoded there; the second finds on either side what it may."""
    expected, logits = build_model(MODEL).decode(PROMPT, COUNT)
    async with engine(0) as here, engine(num_spec) as there:
        router = Router([here], [there])
        for number, computed in ((1, len(PROMPT) - 1), (2, (len(PROMPT) - 1) % BLOCK_TOKENS)):
            request = Request(number, PROMPT, prefix_hashes(PROMPT, BLOCK_TOKENS), MODEL)
            here.computed = there.computed = 0

            tokens, ours = await router.serve(request)

            assert tokens == expected
            assert torch.equal(ours, logits[len(PROMPT) - 1 :])
            assert (here.computed, there.computed) == (computed, COUNT)
        for side in (here, there):
            usage = (await side.session.get_pool()).usage
            assert (usage.held_blocks, usage.quarantined_blocks, usage.sequences) == (0, 0, 0)
