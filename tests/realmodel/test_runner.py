"""Guarantee: a model whose states stand in a pool's blocks gives the logits of the model alone, bit for bit."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from realmodel.generation import Generation
from realmodel.inprocess import BLOCK_COUNT, PLACEMENTS, Placement, in_process
from realmodel.models import MODELS, VOCAB_SIZE, build_model
from realmodel.sequence import AlignSequence, BlockPool
from statepool.copies import CopyPlan
from statepool.torch import ENGINES

NAMES = sorted(MODELS)
BLOCK_TOKENS = 4
TOKENS = torch.randint(VOCAB_SIZE, (30,), generator=torch.Generator().manual_seed(5)).tolist()


def copy_of(src: int, dst: int) -> CopyPlan:
    """Plans the copy of one whole block."""
    return CopyPlan(np.array([src]), np.array([dst]), np.array([0]), np.array([src]))


@pytest.mark.parametrize("placement", PLACEMENTS, ids="-".join)
@pytest.mark.parametrize("name", NAMES)
def test_states_in_a_block(name: str, placement: Placement) -> None:
    """A prompt in uneven chunks, each of which starts from the block that the one before it wrote."""
    model = build_model(name)
    runner, engine = in_process(model, placement)
    engine.zero(np.array([3]))

    logits = [
        runner.forward("a", TOKENS[start:end], num_computed=start, running_block_ids=[3])
        for start, end in ((0, 1), (1, 3), (3, 12), (12, 13), (13, 30))
    ]

    assert_close(torch.cat(logits), model.logits(TOKENS), rtol=0, atol=0)


@pytest.mark.parametrize("engine_name", sorted(ENGINES))
@pytest.mark.parametrize("placement", PLACEMENTS, ids="-".join)
@pytest.mark.parametrize("name", NAMES)
def test_copy_at_a_boundary(name: str, placement: Placement, engine_name: str) -> None:
    """Two requests go on from one state, one in the block that holds it and one in a copy, and neither disturbs it."""
    model = build_model(name)
    runner, engine = in_process(model, placement, engine=engine_name)
    prefix, one_way, other_way = TOKENS[:8], TOKENS[8:14], TOKENS[14:20]
    engine.zero(np.array([1]))
    runner.forward("a", prefix, num_computed=0, running_block_ids=[1])

    engine.copy(copy_of(1, 2))
    runner.reuse_attention("a", "b")
    logits = runner.forward("a", one_way, num_computed=8, running_block_ids=[1])
    others = runner.forward("b", other_way, num_computed=8, running_block_ids=[2])

    assert_close(logits, model.logits(prefix + one_way)[8:], rtol=0, atol=0)
    assert_close(others, model.logits(prefix + other_way)[8:], rtol=0, atol=0)


@pytest.mark.parametrize("placement", PLACEMENTS, ids="-".join)
@pytest.mark.parametrize("name", NAMES)
def test_requests_side_by_side(name: str, placement: Placement) -> None:
    """Sequences in align mode take turns in one pool, the second one from a boundary of the first one's prompt."""
    model = build_model(name)
    runner, engine = in_process(model, placement)
    pool = BlockPool(engine, BLOCK_COUNT)
    first = Generation(runner, AlignSequence(pool, BLOCK_TOKENS, 0, TOKENS[:14]), "first", TOKENS[:14])
    first.prefill(8)
    prompt = TOKENS[:11]
    sequence = AlignSequence(pool, BLOCK_TOKENS, 0, prompt)
    runner.reuse_attention("first", "second")
    second = Generation(runner, sequence, "second", prompt)

    first.prefill(4)
    second.prefill(3)
    first.prefill(2)
    for _ in range(10):
        first.decode()
        second.decode()

    assert len(first.logits) == 24
    assert len(second.logits) == 13
    assert_close(torch.stack(first.logits), model.logits(first.tokens[:-1]), rtol=0, atol=0)
    assert_close(torch.stack(second.logits), model.logits(second.tokens[:-1])[8:], rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_states_are_noticed(name: str) -> None:
    """The comparison has teeth: the state of one token later, and a block that was not zeroed, change the logits."""
    model = build_model(name)
    runner, engine = in_process(model, PLACEMENTS[0])
    engine.zero(np.array([1]))
    runner.forward("a", TOKENS[:9], num_computed=0, running_block_ids=[1])

    too_late = runner.forward("a", TOKENS[8:12], num_computed=8, running_block_ids=[1])
    not_zeroed = runner.forward("b", TOKENS[:4], num_computed=0, running_block_ids=[1])

    assert not torch.equal(too_late, model.logits(TOKENS[:12])[8:])
    assert not torch.equal(not_zeroed, model.logits(TOKENS[:4]))


def test_missing_attention_is_refused() -> None:
    """A request does not go on from a boundary without the keys and values up to it."""
    model = build_model("qwen3_next")
    runner, _ = in_process(model, PLACEMENTS[0])

    with pytest.raises(ValueError, match="num_computed"):
        runner.forward("a", TOKENS[8:], num_computed=8, running_block_ids=[1])
