"""Guarantee: whatever dies, stands still, breaks or lies, what clients saw is what a correct server can have done."""

from dataclasses import replace
from pathlib import Path

import pytest

from robustness.run import run
from robustness.scenario import ROOMY_BLOCKS, TIGHT_BLOCKS, Scenario, draw
from service.servers import fast_folder
from statepool import Execution

SECONDS = 3.0
CLIENTS = ("kill_scheduler", "stop_scheduler", "usurp_scheduler", "kill_worker", "stop_worker")
REST = ("cut", "half_close", "replay", "stall", "stop_server", "kill_server", "jump_clock", "garbage", "lie")


def scenario(seed: int, faults: tuple[str, ...], blocks: int, *, take_over: bool) -> Scenario:
    """Draws a scenario of a seed, with what must not be left to chance in a run as short as this."""
    drawn = draw(seed, SECONDS, faults)
    certain = {"schedulers": 2, "workers_per_rank": 1, "ttl": 1.0, "execution": Execution.SERVER}
    return replace(drawn, **certain, blocks=blocks, take_over=take_over)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(scenario(1, CLIENTS, ROOMY_BLOCKS, take_over=True), id="clients"),
        pytest.param(scenario(2, REST, TIGHT_BLOCKS, take_over=False), id="server and connections"),
    ],
)
def test_short_run(case: Scenario) -> None:
    """A short run with its faults: `make robustness` has the long ones."""
    with fast_folder() as folder:
        verdict = run(case, Path(folder))

    assert verdict.violations == []
    assert verdict.counts["answered"] > 0
    assert verdict.counts["states compared"] > 0
