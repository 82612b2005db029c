"""Guarantee: steps whose copies an attached worker runs leave the very bytes that the server would have left."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from service.servers import Server, Servers
from service.test_align_traces import send
from statepool import Client, Execution, Session, StepOutcome
from statepool.torch import AttachedPool, ReferenceEngine, attach, state_views
from support.traces import NAMES, SCENARIOS, asks

Seen = list[torch.Tensor]
PLAIN = [(name, scenario) for name, scenario in zip(NAMES, SCENARIOS, strict=True) if "-S0" in name]
SPECULATIVE = [(name, scenario) for name, scenario in zip(NAMES, SCENARIOS, strict=True) if "-S0" not in name]


def server_for(servers: Servers, scenario: dict[str, Any], *more: str) -> Server:
    """Starts a server that has what a scenario needs, with more flags."""
    spec = scenario["num_speculative_tokens"]
    flags = ("--blocks", str(scenario["num_blocks"]), "--block-tokens", str(scenario["block_size"]))
    return servers.start(*flags, "--num-spec", str(spec), *more, conv_shape=(3 + spec, 8)).wait_until_ready()


def _running_blocks(client: Client, session: Session) -> list[int]:
    """Lists the running block of the one sequence and its speculative ones."""
    (page,) = client.list_sequences(session.session_id)
    blocks: list[int] = page.table(0)[int(page.running_columns[0]) :].tolist()
    return blocks


def _forward(pool: AttachedPool, blocks: list[int], seed: int) -> None:
    """Writes what a model could: other values in every state of the blocks, the same in every history."""
    generator = torch.Generator().manual_seed(seed)
    for view in pool.views.values():
        for block in blocks:
            view[block] = torch.randint(0, 100, tuple(view.shape[1:]), generator=generator).to(view.dtype)
    if view.is_cuda:
        torch.cuda.synchronize(view.device)  # a pass has ended when its kernels have


def run_scenario(
    server: Server,
    scenario: dict[str, Any],
    execution: Execution,
    copy: Callable[[AttachedPool, StepOutcome], None],
) -> Seen:
    """Runs a scenario; returns what each pass found in its running block, before it wrote there."""
    seen: Seen = []
    with (
        server.client() as client,
        attach(client, rank_index=1) as pool,
        client.create_session(60.0) as session,
        session.scheduler(execution=execution) as scheduler,
    ):
        for sequence, request in enumerate(scenario["requests"]):
            for ask in asks(request, scenario["block_size"]):
                outcome = send(scheduler, sequence, ask, request, scenario["block_size"])
                with pool.writing(session.session_id, session.epoch):
                    copy(pool, outcome)
                    if ask.num_tokens:
                        blocks = _running_blocks(client, session)
                        seen += [view[blocks[0]].clone() for view in pool.views.values()]
                        _forward(pool, blocks, len(seen))
    return seen


def nothing(pool: AttachedPool, outcome: StepOutcome) -> None:
    """Leaves the copies to the server."""


@pytest.mark.parametrize("scenario", [scenario for _, scenario in PLAIN], ids=[name for name, _ in PLAIN])
def test_worker_as_server(servers: Servers, scenario: dict[str, Any]) -> None:
    """Every pass finds the same state, whether the server or the worker has zeroed and copied before it."""
    by_server = run_scenario(server_for(servers, scenario), scenario, Execution.SERVER, nothing)
    by_worker = run_scenario(server_for(servers, scenario), scenario, Execution.WORKER, AttachedPool.run_copies)

    assert any(state.any() for state in by_server)
    assert len(by_server) == len(by_worker)
    assert all(torch.equal(one, other) for one, other in zip(by_server, by_worker, strict=True))


@pytest.mark.parametrize("scenario", [scenario for _, scenario in SPECULATIVE], ids=[name for name, _ in SPECULATIVE])
def test_what_the_server_has_done(servers: Servers, scenario: dict[str, Any]) -> None:
    """A worker that need not copy may ask for it all the same: shifts in place are not done twice."""
    alone = run_scenario(server_for(servers, scenario), scenario, Execution.SERVER, nothing)

    asked = run_scenario(server_for(servers, scenario), scenario, Execution.SERVER, AttachedPool.run_copies)

    assert any(state.any() for state in alone)
    assert all(torch.equal(one, other) for one, other in zip(alone, asked, strict=True))


@pytest.mark.parametrize("scenario", [scenario for _, scenario in SPECULATIVE], ids=[name for name, _ in SPECULATIVE])
def test_worker_as_reference(servers: Servers, scenario: dict[str, Any]) -> None:
    """With speculation, where copies shift, the worker leaves what plain torch does, in every block of the pool."""
    copies = 0

    def both(pool: AttachedPool, outcome: StepOutcome) -> None:
        nonlocal copies
        layout = pool.description.layout
        clone = torch.empty(layout.nbytes, dtype=torch.uint8)
        views = state_views(clone, layout)
        for name, view in pool.views.items():
            views[name].copy_(view)
        reference = ReferenceEngine(clone, layout)
        reference.copy(outcome.post_copies.plan())
        reference.zero(outcome.zeroed_block_ids)
        reference.copy(outcome.pre_copies.plan())
        pool.run_copies(outcome)
        copies += len(outcome.post_copies) + len(outcome.pre_copies)
        assert all(torch.equal(view, views[name]) for name, view in pool.views.items())

    run_scenario(server_for(servers, scenario), scenario, Execution.WORKER, both)

    assert copies
