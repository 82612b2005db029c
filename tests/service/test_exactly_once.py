"""Guarantee: a step whose answer was lost is applied exactly once, wherever its stream was cut."""

import itertools

from service.conftest import plain_stubs
from service.raw import OpenSchedule, Stubs, ref_of, refusal_of
from service.servers import BLOCK_TOKENS, Servers
from statepool import SequenceNotFoundError, Session, StepOutOfOrderError
from statepool.status import error_from_wire
from statepool.v1 import sequence_pb2 as pb

PROMPT = 2 * BLOCK_TOKENS
CUTS = ["before it is sent", "before it is answered", "after it is answered"]


def history() -> list[pb.EngineStep]:
    """Lists steps that admit, prefill, reach boundaries, publish, hit, and finish: copies and zeroing included."""
    chain = [b"a.%d" % depth for depth in range(1, 4)]
    prefill = pb.Schedules(sequence_ids=[1], num_tokens=[BLOCK_TOKENS])
    decode = pb.Schedules(sequence_ids=[1, 2], num_tokens=[1])
    reach = pb.Commits(all_running=True, accepted_tokens=[1], hash_rows=[0], boundary_tokens=[BLOCK_TOKENS])
    reach.prefix_hashes.append(chain[0])
    admit = pb.Admissions(sequence_ids=[2], prompt_tokens=[PROMPT], hash_offsets=[0, 1], prefix_hashes=chain[:1])
    return [
        pb.EngineStep(admissions=pb.Admissions(sequence_ids=[1], prompt_tokens=[PROMPT]), schedules=prefill),
        pb.EngineStep(commits=reach, schedules=prefill),
        pb.EngineStep(commits=pb.Commits(all_running=True, accepted_tokens=[1]), admissions=admit, schedules=decode),
        pb.EngineStep(commits=pb.Commits(all_running=True, accepted_tokens=[1]), finishes=[1]),
        pb.EngineStep(schedules=pb.Schedules(sequence_ids=[2], num_tokens=[1])),
        pb.EngineStep(finishes=[2]),
    ]


def numbered() -> list[pb.EngineStep]:
    """Numbers the steps from 1, each settling the one before."""
    steps = history()
    for number, step in enumerate(steps, start=1):
        step.step, step.settled_step = number, number - 1
    return steps


def outcomes_of(stubs: Stubs, session: Session, cut_at: int, cut: str) -> list[pb.StepOutcome]:
    """Sends the history and cuts the stream once; whatever was not answered is sent again on a new one."""
    stream, outcomes = OpenSchedule(stubs, ref_of(session)), []
    stream.answer()
    for step in numbered():
        if step.step == cut_at:
            if cut != CUTS[0]:
                stream.send(pb.ScheduleRequest(step=step))
            if cut == CUTS[2]:
                stream.answer()
            stream.cut()
            stream = OpenSchedule(stubs, ref_of(session))
            assert stream.answer().opened.last_step in (step.step - 1, step.step)
        outcomes.append(stream.step(step).outcome)
    stream.finish()
    return outcomes


def test_cut_anywhere(servers: Servers) -> None:
    """Outcomes are those of a twin server whose streams are never cut: block ids, generations and digests included."""
    whole, broken = servers.start().wait_until_ready(), servers.start().wait_until_ready()

    with (
        plain_stubs(whole) as stubs,
        plain_stubs(broken) as broken_stubs,
        whole.client() as client,
        broken.client() as broken_client,
    ):
        for cut, cut_at in itertools.product(CUTS, range(1, len(history()) + 1)):
            with client.create_session(60.0) as session, broken_client.create_session(60.0) as broken_session:
                expected = outcomes_of(stubs, session, 0, "")
                outcomes = outcomes_of(broken_stubs, broken_session, cut_at, cut)
            assert outcomes == expected, f"cut at step {cut_at}, {cut}"
            assert outcomes[2].admissions.num_computed_tokens == [BLOCK_TOKENS]


def test_either_of_the_last_two_steps_is_answered_again(stubs: Stubs, session: Session) -> None:
    """A client that has two steps unanswered can ask for both again, by Step as well; older ones are gone."""
    steps = numbered()
    stream = OpenSchedule(stubs, ref_of(session))
    stream.answer()
    answers = [stream.step(step).outcome for step in steps[:3]]
    stream.finish()

    again = [stubs.sequences.Step(pb.StepRequest(session=ref_of(session), step=step)).outcome for step in steps[1:3]]
    error = refusal_of(lambda: stubs.sequences.Step(pb.StepRequest(session=ref_of(session), step=steps[0])))

    assert again == answers[1:]
    assert isinstance(error, StepOutOfOrderError)


def test_other_numbers_are_refused(stubs: Stubs, session: Session) -> None:
    """A number that is neither the next nor a repeated step, or another step under a used number, changes nothing."""
    stream = OpenSchedule(stubs, ref_of(session))
    stream.answer()
    first, second = numbered()[:2]
    applied = stream.step(first).outcome

    ahead = stream.step(pb.EngineStep(step=3)).refusal
    changed = pb.EngineStep()
    changed.CopyFrom(first)
    changed.schedules.num_tokens[0] += 1
    another = stream.step(changed).refusal

    assert [error_from_wire(refusal.error).reason for refusal in (ahead, another)] == ["STEP_OUT_OF_ORDER"] * 2
    assert [refusal.step for refusal in (ahead, another)] == [3, 1]
    assert stream.step(first).outcome == applied
    assert stream.step(second).HasField("outcome")
    stream.finish()


def test_a_refused_step_does_not_use_its_number_up(stubs: Stubs, session: Session) -> None:
    """After an error in the stream, the same number is taken with another content."""
    stream = OpenSchedule(stubs, ref_of(session))
    stream.answer()
    wrong = pb.EngineStep(step=1, finishes=[7])

    refused, applied = stream.step(wrong), stream.step(numbered()[0])
    stream.finish()

    assert isinstance(error_from_wire(refused.refusal.error), SequenceNotFoundError)
    assert applied.outcome.step == 1
