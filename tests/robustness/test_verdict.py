"""Guarantee: a history that no correct server can have is found out."""

import base64
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from robustness.history import Fact, read
from robustness.run import run
from robustness.scenario import ROOMY_BLOCKS, Scenario, draw
from robustness.verdict import Judge
from service.servers import fast_folder
from statepool import Execution
from statepool.v1 import sequence_pb2 as pb

History = list[Fact]


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    """Draws a quiet run with room for everything."""
    return replace(
        draw(1, 2.5, ["calm"]), schedulers=2, workers_per_rank=1, blocks=ROOMY_BLOCKS, execution=Execution.SERVER
    )


@pytest.fixture(scope="module")
def recorded(scenario: Scenario) -> Iterator[History]:
    """Records a history."""
    with fast_folder() as folder:
        assert run(scenario, Path(folder)).violations == []
        yield read(Path(folder))


@pytest.fixture
def violations(scenario: Scenario, recorded: History) -> Callable[[History], list[str]]:
    """Judges a history that was tampered with; the one that was recorded is beyond reproach."""
    judge = Judge(scenario)
    assert judge.judge(recorded).violations == []
    return lambda history: Judge(scenario).judge(sorted(history, key=lambda f: f.at_ns)).violations


def changed(fact: Fact, **facts: object) -> Fact:
    """Writes a fact otherwise."""
    return replace(fact, facts={**fact.facts, **facts})


def outcome_of(fact: Fact) -> pb.StepOutcome:
    """Reads the outcome in an answer."""
    return pb.StepOutcome.FromString(base64.b64decode(fact["outcome"]))


def with_outcome(fact: Fact, outcome: pb.StepOutcome) -> Fact:
    """Writes another outcome into an answer."""
    return changed(fact, outcome=base64.b64encode(outcome.SerializeToString()).decode())


def edited(
    history: History, fits: Callable[[pb.StepOutcome], bool], edit: Callable[[pb.StepOutcome], object]
) -> History:
    """Edits the last answer that fits."""
    index = max(i for i, fact in enumerate(history) if fact.kind == "answered" and fits(outcome_of(fact)))
    outcome = outcome_of(history[index])
    edit(outcome)
    return [*history[:index], with_outcome(history[index], outcome), *history[index + 1 :]]


def test_block_given_twice(recorded: History, violations: Callable[[History], list[str]]) -> None:
    """An allocation that another session has had is seen."""
    first = next(out for fact in recorded if fact.kind == "answered" and len((out := outcome_of(fact)).tables.rows))

    def give_again(outcome: pb.StepOutcome) -> None:
        outcome.tables.block_ids[-1] = first.tables.block_ids[0]
        outcome.tables.generations[-1] = first.tables.generations[0]

    found = violations(edited(recorded, lambda out: len(out.zeroed_block_ids) > 0, give_again))

    assert any("was given to" in violation for violation in found)


def test_two_writers(recorded: History, violations: Callable[[History], list[str]]) -> None:
    """A block that is given away while a worker still writes it for its former owner is seen."""
    end_ns = recorded[-1].at_ns
    generations = [
        (ref, fact)
        for fact in recorded
        if fact.kind == "began"
        for ref in zip(fact["blocks"], fact["generations"], strict=True)
    ]
    newest = {block: generation for (block, generation), _ in generations}
    reused = next(fact for (block, generation), fact in generations if generation < newest[block])
    done = next(
        fact
        for fact in recorded
        if fact.kind == "done" and fact.at_ns > reused.at_ns and fact.process == reused.process
    )
    later = [
        replace(fact, at_ns=end_ns) if fact is done else fact
        for fact in recorded
        if fact.process != done.process or fact.at_ns <= done.at_ns
    ]

    assert any("had two writers" in violation for violation in violations(later))


def test_step_applied_twice(recorded: History, violations: Callable[[History], list[str]]) -> None:
    """An answer whose copies were taken from a later state of the table is seen."""

    def repeat(outcome: pb.StepOutcome) -> None:
        outcome.pre_copies.src_columns[0] += 1

    found = violations(edited(recorded, lambda out: len(out.pre_copies.rows) > 0, repeat))

    assert any("the model says" in violation for violation in found)


def test_step_without_effect(recorded: History, violations: Callable[[History], list[str]]) -> None:
    """An answer that belongs to another step is seen."""

    def skip(outcome: pb.StepOutcome) -> None:
        outcome.step += 1

    assert any("number" in violation for violation in violations(edited(recorded, lambda _: True, skip)))


def test_lost_commit(recorded: History, violations: Callable[[History], list[str]]) -> None:
    """A search that misses what was committed is seen."""

    def miss(outcome: pb.StepOutcome) -> None:
        outcome.admissions.num_computed_tokens[0] = 0
        outcome.admissions.block_ids[0] = 0

    found = violations(edited(recorded, lambda out: any(out.admissions.num_computed_tokens), miss))

    assert any("an acknowledged commit is lost" in violation for violation in found)


def test_hit_of_nothing(recorded: History, violations: Callable[[History], list[str]]) -> None:
    """A hit of what nobody has committed is seen."""
    without = [fact for fact in recorded if fact.kind != "answered" or not any(outcome_of(fact).admissions.block_ids)]
    hit = next(fact for fact in recorded if fact not in without)
    asked = next(
        f for f in recorded if f.kind == "asked" and (f["session"], f["step"]) == (hit["session"], hit["step"])
    )
    opened = next(f for f in recorded if f.kind == "opened" and f["session"] == hit["session"])
    step = pb.EngineStep.FromString(base64.b64decode(asked["request"]))
    step.step = 1
    step.ClearField("commits")
    outcome = pb.StepOutcome(step=1, admissions=outcome_of(hit).admissions)
    step.ClearField("schedules")
    step.ClearField("finishes")
    request = base64.b64encode(step.SerializeToString()).decode()
    (serving,) = (fact for fact in recorded if fact.kind == "serving")
    lone = [serving, opened, changed(asked, step=1, request=request), with_outcome(changed(hit, step=1), outcome)]

    assert any("that nobody has committed" in violation for violation in violations(lone))


@pytest.mark.parametrize(
    ("kind", "facts", "sign"),
    [
        ("done", {"wrong": ["layers.0.ssm"]}, "stale read"),
        ("done", {"foreign": [3]}, "somebody else wrote"),
    ],
)
def test_what_workers_saw(
    recorded: History, violations: Callable[[History], list[str]], kind: str, facts: dict[str, object], sign: str
) -> None:
    """What a worker has found wrong is passed on."""
    index = next(i for i, fact in enumerate(recorded) if fact.kind == kind)

    found = violations([*recorded[:index], changed(recorded[index], **facts), *recorded[index + 1 :]])

    assert [violation for violation in found if sign in violation]


@pytest.mark.parametrize("answer", ["accepted", "StatepoolError", "InvalidArgumentError"])
def test_lies(recorded: History, violations: Callable[[History], list[str]], answer: str) -> None:
    """A lie that was taken, or refused without a reason, is seen."""
    lied = Fact(recorded[-1].at_ns, "run", "lied", {"lie": "stale free", "answer": answer})

    assert [violation for violation in violations([*recorded, lied]) if "stale free" in violation]
