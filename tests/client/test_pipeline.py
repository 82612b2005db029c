"""Guarantee: a scheduler's books number each step once, and never send a step again that must not be applied."""

import pytest

from statepool import Execution, PoolExhaustedError, Schedules, StepOutOfOrderError
from statepool.calls.sequences import StepArguments
from statepool.pipeline import Pipeline
from statepool.status import error_to_wire
from statepool.v1 import sequence_pb2 as pb
from statepool.v1.types_pb2 import SessionRef


def arguments(mark: int) -> StepArguments:
    """Makes a step that can be told from others by the sequence that it schedules."""
    return {
        "admit": (),
        "schedule": Schedules([mark]),
        "commit": None,
        "finish": (),
        "settled_step": None,
        "partial_admission": False,
    }


def opened(last_step: int = 0) -> Pipeline:
    """Makes a pipeline whose stream was opened."""
    pipeline = Pipeline(SessionRef(session_id=1), Execution.SERVER)
    pipeline.answered(pb.ScheduleResponse(opened=pb.ScheduleOpened(last_step=last_step)))
    return pipeline


def applies(pipeline: Pipeline, number: int) -> None:
    """Has the server apply a step."""
    pipeline.answered(pb.ScheduleResponse(outcome=pb.StepOutcome(step=number)))


def refuses(pipeline: Pipeline, number: int) -> None:
    """Has the server refuse a step."""
    error = error_to_wire(PoolExhaustedError("full", requested=2, free=1, evictable=0))
    pipeline.answered(pb.ScheduleResponse(refusal=pb.StepRefusal(step=number, error=error)))


def sent(pipeline: Pipeline) -> list[tuple[int, int]]:
    """Lists number and mark of the steps that a new stream is sent."""
    first, *steps = pipeline.requests()
    assert first.HasField("open")
    return [(request.step.step, request.step.schedules.sequence_ids[0]) for request in steps]


def test_numbers_go_on_from_the_session() -> None:
    """The first number follows the last step of the session, whoever took it; a later opening changes nothing."""
    pipeline = opened(last_step=41)

    numbers = [pipeline.ask(arguments(mark))[0] for mark in range(2)]
    pipeline.answered(pb.ScheduleResponse(opened=pb.ScheduleOpened(last_step=42)))

    assert numbers == [42, 43]
    assert pipeline.unreceived == (42, 43)


def test_settled_is_the_step_before() -> None:
    """Unless the engine says otherwise, a step confirms the one before it."""
    _, request = opened(last_step=6).ask(arguments(0))

    assert (request.step.step, request.step.settled_step) == (7, 6)


def test_two_steps_are_under_way_at_most() -> None:
    """An answer frees a place when it is taken, not when it comes."""
    pipeline = opened()
    for mark in range(2):
        pipeline.ask(arguments(mark))
    applies(pipeline, 1)

    with pytest.raises(RuntimeError, match="not received yet"):
        pipeline.ask(arguments(2))
    pipeline.take()

    assert pipeline.ask(arguments(2))[0] == 3


def test_a_pipeline_that_was_never_opened_has_no_number() -> None:
    """Without the server's word no step can be numbered."""
    with pytest.raises(RuntimeError, match="not open"):
        Pipeline(SessionRef(), Execution.SERVER).ask(arguments(0))


def test_unanswered_steps_are_sent_again() -> None:
    """A new stream is sent what is not answered, in order, under the same numbers and with the same content."""
    pipeline = opened()
    before = [pipeline.ask(arguments(mark))[1] for mark in range(2)]

    assert pipeline.requests()[1:] == before
    applies(pipeline, 1)
    assert pipeline.requests()[1:] == before[1:]


def test_refused_number_is_used_again() -> None:
    """A refusal has its error and facts, and gives the number back."""
    pipeline = opened()
    pipeline.ask(arguments(0))
    refuses(pipeline, 1)

    with pytest.raises(PoolExhaustedError) as full:
        pipeline.take()

    assert full.value.metadata == {"requested": "2", "free": "1", "evictable": "0"}
    assert pipeline.ask(arguments(1))[0] == 1


def test_step_after_a_refused_one_is_not_sent_again() -> None:
    """On a new stream it would be taken for the next, so it is refused here, and the step sent since is sent again."""
    pipeline = opened()
    for mark in (10, 20):
        pipeline.ask(arguments(mark))
    refuses(pipeline, 1)
    with pytest.raises(PoolExhaustedError):
        pipeline.take()
    pipeline.ask(arguments(11))

    again = sent(pipeline)

    assert again == [(1, 11)]
    with pytest.raises(StepOutOfOrderError):
        pipeline.take()
    assert sent(pipeline) == [(1, 11)]
    applies(pipeline, 1)
    assert pipeline.take().step == 1
    assert pipeline.ask(arguments(21))[0] == 2


def test_both_refusals_of_one_stream() -> None:
    """The refusal of the second step leaves a step that was sent in between as it is."""
    pipeline = opened()
    for mark in (10, 20):
        pipeline.ask(arguments(mark))
    refuses(pipeline, 1)
    with pytest.raises(PoolExhaustedError):
        pipeline.take()
    pipeline.ask(arguments(11))
    refuses(pipeline, 2)
    with pytest.raises(PoolExhaustedError):
        pipeline.take()

    assert sent(pipeline) == [(1, 11)]
    assert pipeline.ask(arguments(21))[0] == 2


def test_answers_that_nobody_waits_for() -> None:
    """An answer that comes twice, or to a step that was not sent, is passed over."""
    pipeline = opened()
    for mark in range(2):
        pipeline.ask(arguments(mark))
    for number in (1, 1, 7):
        applies(pipeline, number)

    assert pipeline.take().step == 1
    assert not pipeline.has_answer
    assert pipeline.unreceived == (2,)
