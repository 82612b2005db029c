"""Guarantee: a builder keeps the counters that the server keeps, and names exactly the boundaries that are reached."""

import numpy as np
import pytest

from statepool import ALL_RUNNING, ImportedState, PoolExhaustedError, prefix_hashes
from statepool.outcomes import StepOutcome
from statepool.refs import BlockRefs
from statepool.steps import StepBuilder
from statepool.v1 import sequence_pb2 as pb

BLOCK_TOKENS = 4
PROMPT = list(range(10))


def outcome(*admitted: int) -> StepOutcome:
    """Makes what a server answers to admissions."""
    return StepOutcome(pb.StepOutcome(admissions=pb.AdmissionResults(num_computed_tokens=admitted)))


def apply(builder: StepBuilder, *admitted: int) -> list[int]:
    """Sends the step to a server that applies it."""
    builder.step()
    return builder.applied(outcome(*admitted))


def admitted(builder: StepBuilder, **computed: int) -> None:
    """Admits sequence 1 with the prompt."""
    builder.admit(1, PROMPT)
    apply(builder, computed.get("hit", 0))


def run(builder: StepBuilder, *token_ids: int, tokens: int, drafts: int = 0) -> list[bytes]:
    """Runs one pass of sequence 1; returns the hashes that its commit names."""
    builder.schedule(1, tokens, drafts)
    apply(builder)
    builder.commit(1, token_ids)
    commit = builder.step()["commit"]
    assert commit is not None
    apply(builder)
    return list(commit.prefix_hashes)


def test_admission_carries_the_hashes_of_full_blocks() -> None:
    """A prompt of two blocks and a half has two hashes, in the builder's namespace and with its salt."""
    builder = StepBuilder(BLOCK_TOKENS, namespace="m", salt=b"lora")

    builder.admit(1, PROMPT, max_hit_tokens=4)
    (admission,) = builder.step()["admit"]

    assert list(admission.prefix_hashes) == prefix_hashes(PROMPT, BLOCK_TOKENS, salt=b"lora")
    assert (admission.prompt_tokens, admission.namespace, admission.max_hit_tokens) == (10, "m", 4)


def test_prefill_ends_at_boundaries() -> None:
    """Chunks are clipped to boundaries, and each commit names the boundary that it reached."""
    builder, hashes = StepBuilder(BLOCK_TOKENS), prefix_hashes(PROMPT, BLOCK_TOKENS)
    admitted(builder)
    seen = []

    while builder.num_left(1) > 1:
        tokens = builder.schedule_prefill(1, budget=6)
        apply(builder)
        builder.commit(1, () if builder.num_left(1) > tokens else [99])
        commit = builder.step()["commit"]
        assert commit is not None
        seen.append((tokens, list(commit.prefix_hashes), np.asarray(commit.boundary_tokens).tolist()))
        apply(builder)

    assert seen == [(4, hashes[:1], [4]), (4, hashes[1:], [8]), (2, [], [])]
    assert (builder.num_computed(1), builder.num_left(1)) == (10, 1)


def test_hit_shortens_the_prefill() -> None:
    """What was found need not be computed."""
    builder = StepBuilder(BLOCK_TOKENS)
    admitted(builder, hit=8)

    assert (builder.num_computed(1), builder.num_left(1)) == (8, 2)
    assert builder.schedule_prefill(1, budget=100) == 2


def test_boundary_within_accepted_drafts() -> None:
    """A boundary is named when a state stands at it: at the first accepted token or a later one, not before."""
    builder = StepBuilder(BLOCK_TOKENS)
    admitted(builder, hit=8)
    tokens = [*PROMPT, 20, 21, 22, 23, 24]

    nothing = run(builder, 20, tokens=2)
    reached = run(builder, 21, 22, tokens=3, drafts=2)
    passed_by_one = run(builder, 23, 24, tokens=2, drafts=1)

    assert nothing == []
    assert reached == [prefix_hashes(tokens, BLOCK_TOKENS)[2]]
    assert passed_by_one == []
    assert builder.num_computed(1) == 14


def test_chunk_that_passes_over_a_boundary() -> None:
    """A chunk that does not end at a boundary leaves no state there, so nothing is named."""
    builder = StepBuilder(BLOCK_TOKENS)
    admitted(builder)

    assert run(builder, tokens=6) == []


def test_running_list() -> None:
    """The batch of the step before is named in one word, also when some of it has finished."""
    builder = StepBuilder(BLOCK_TOKENS)
    for sequence_id in (1, 2, 3):
        builder.admit(sequence_id, PROMPT)
    apply(builder, 8, 8, 8)
    for sequence_id in (1, 2, 3):
        builder.schedule(sequence_id, 2)
    first = builder.step()["schedule"]
    apply(builder)

    for sequence_id in (1, 2, 3):
        builder.commit(sequence_id, [50])
    builder.finish(2)
    for sequence_id in (1, 3):
        builder.schedule(sequence_id, 1)
    step = builder.step()

    assert first is not None
    assert first.sequence_ids == [1, 2, 3]
    assert step["commit"] is not None
    assert step["commit"].sequence_ids is ALL_RUNNING
    assert step["schedule"] is not None
    assert step["schedule"].sequence_ids is ALL_RUNNING
    assert step["finish"] == [2]


def test_refused_step_is_changed_and_sent_again() -> None:
    """What was collected stays; finishing a sequence takes its pass out, or its admission if that was never applied."""
    builder = StepBuilder(BLOCK_TOKENS)
    admitted(builder, hit=8)
    builder.schedule(1, 2)
    builder.admit(2, PROMPT)
    refused = PoolExhaustedError("full")

    builder.finish(1)
    builder.finish(2)
    step = builder.step()

    assert refused.reason == "POOL_EXHAUSTED"
    assert (step["finish"], step["admit"], step["schedule"]) == ([1], [], None)
    apply(builder)
    builder.admit(1, PROMPT)
    assert [admission.sequence_id for admission in builder.step()["admit"]] == [1]


def test_partial_admission() -> None:
    """Sequences that were left out are told and forgotten."""
    builder = StepBuilder(BLOCK_TOKENS)
    for sequence_id in (1, 2, 3):
        builder.admit(sequence_id, PROMPT)

    assert apply(builder, 0) == [2, 3]
    builder.admit(2, PROMPT)
    assert len(builder.step()["admit"]) == 1


def test_abort_while_a_step_is_under_way() -> None:
    """A sequence that is finished after its step was sent is finished by the next one, whatever became of it."""
    builder = StepBuilder(BLOCK_TOKENS)
    admitted(builder, hit=8)
    builder.schedule(1, 2)
    builder.admit(2, PROMPT)
    builder.admit(3, PROMPT)
    builder.step()

    for sequence_id in (1, 2, 3):
        builder.finish(sequence_id)

    assert builder.applied(outcome(0)) == []
    assert builder.step()["finish"] == [1, 2]


def test_id_that_is_used_again_in_the_same_step() -> None:
    """A sequence may end and begin again in one step, and end once more."""
    builder = StepBuilder(BLOCK_TOKENS)
    admitted(builder)
    builder.finish(1)
    builder.admit(1, PROMPT)
    builder.finish(1)
    step = builder.step()
    builder.applied(outcome())

    assert (step["finish"], step["admit"]) == ([1], [])
    assert builder.step()["finish"] == []


def test_imported_state() -> None:
    """A sequence with a state of its own is admitted without hashes."""
    builder = StepBuilder(BLOCK_TOKENS)
    builder.admit(1, PROMPT, imported=ImportedState(BlockRefs.of([3], [1]), 9))
    (admission,) = builder.step()["admit"]
    apply(builder, 9)

    assert admission.prefix_hashes == ()
    assert builder.num_left(1) == 1


def test_what_makes_no_sense_is_refused() -> None:
    """Passes need admitted sequences without an outstanding one, commits need one, ids are used once."""
    builder = StepBuilder(BLOCK_TOKENS)
    builder.admit(1, PROMPT)
    with pytest.raises(ValueError, match="not admitted yet"):
        builder.schedule(1, 1)
    with pytest.raises(ValueError, match="is live"):
        builder.admit(1, PROMPT)
    apply(builder, 0)
    with pytest.raises(ValueError, match="no outstanding pass"):
        builder.commit(1, [5])
    with pytest.raises(ValueError, match="10 are left"):
        builder.schedule(1, 11)
    with pytest.raises(ValueError, match="1 drafts"):
        builder.schedule(1, 2, 1)
    builder.schedule(1, 4)
    apply(builder)
    with pytest.raises(ValueError, match="outstanding pass"):
        builder.schedule(1, 4)
    with pytest.raises(ValueError, match="cannot give 1 tokens"):
        builder.commit(1, [5])
    with pytest.raises(ValueError, match="no token"):
        builder.admit(2, [])
    builder.finish(1)
    with pytest.raises(ValueError, match="not live"):
        builder.finish(1)
