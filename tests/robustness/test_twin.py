"""Guarantee: a domain that is told what the server was told gives the same answers, whatever broke on the way."""

import base64
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from robustness.history import Fact, read
from robustness.run import run
from robustness.scenario import Scenario, alone, draw, write_model
from robustness.twin import Courses
from service.servers import fast_folder
from statepool.v1 import sequence_pb2 as pb

FAULTS = ("kill_scheduler", "cut", "half_close", "replay")


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    """Draws a run of one scheduler after the other, whose connections break and whose calls come twice."""
    return alone(draw(3, 3.0, FAULTS))


@pytest.fixture(scope="module")
def recorded(scenario: Scenario) -> Iterator[list[Fact]]:
    """Records a history in which the twin has agreed."""
    with fast_folder() as folder:
        assert run(scenario, Path(folder)).violations == []
        yield read(Path(folder))


@pytest.fixture
def follow(scenario: Scenario, tmp_path: Path) -> Callable[[list[Fact]], list[str]]:
    """Follows a history that was tampered with."""
    model = write_model(tmp_path)
    return lambda history: list(Courses(scenario, model).follow(history))


def test_same_answers(recorded: list[Fact], follow: Callable[[list[Fact]], list[str]]) -> None:
    """Block ids, generations, copies and digests of all steps are those of the twin."""
    assert follow(recorded) == []
    assert sum(fact.kind == "answered" for fact in recorded) > 1


def test_another_digest(recorded: list[Fact], follow: Callable[[list[Fact]], list[str]]) -> None:
    """An answer with another digest is seen."""
    index = next(i for i, fact in enumerate(recorded) if fact.kind == "answered")
    outcome = pb.StepOutcome.FromString(base64.b64decode(recorded[index]["outcome"]))
    outcome.digest ^= 1
    text = base64.b64encode(outcome.SerializeToString()).decode()
    recorded = [*recorded]
    recorded[index] = replace(recorded[index], facts={**recorded[index].facts, "outcome": text})

    assert len(follow(recorded)) == 1


def test_step_that_was_not_applied(recorded: list[Fact], follow: Callable[[list[Fact]], list[str]]) -> None:
    """An acknowledged step that the server forgot before the next one is seen."""
    answered = [fact for fact in recorded if fact.kind == "answered"]
    first, second = next((a, b) for a, b in pairwise(answered) if a["session"] == b["session"])
    forgotten = [
        fact
        for fact in recorded
        if not (
            fact.kind in ("asked", "answered") and (fact["session"], fact["step"]) == (first["session"], first["step"])
        )
    ]

    assert len(follow(forgotten)) == 1
    assert second["step"] == first["step"] + 1
