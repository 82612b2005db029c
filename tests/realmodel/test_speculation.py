"""Guarantee: speculative decoding in align mode gives the logits of plain decoding, bit for bit.

Accepted drafts leave their state at a bias in the running block and in a speculative block; the copies before and after
a step bring it to where the next step, or another request with the same prefix, starts from.
"""

import functools
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch.testing import assert_close

from realmodel.generation import Generation
from realmodel.inprocess import BLOCK_COUNT, PLACEMENTS, in_process
from realmodel.models import VOCAB_SIZE, build_model
from realmodel.runner import StateRunner
from realmodel.sequence import AlignSequence, BlockPool, Copy

NAMES = ("mamba2", "qwen3_next")  # the conv states of LFM2 have no speculative rows
SIZES = ((4, 2), (5, 4))
"""Tokens of a block, and speculative tokens."""
PROMPT = torch.randint(VOCAB_SIZE, (11,), generator=torch.Generator().manual_seed(9)).tolist()


@functools.cache
def plain(name: str) -> tuple[list[int], torch.Tensor]:
    """Decodes with the model alone: the tokens and logits that every run in this file must agree with."""
    return build_model(name).decode(PROMPT, 200)


@dataclass(frozen=True)
class Speculated:
    """A run that has decoded with drafts, and what it ran on."""

    name: str
    """The model's."""
    block_tokens: int
    """Tokens of a block."""
    num_spec: int
    """Speculative tokens of the layout."""
    runner: StateRunner
    """Keeps the keys and values of the request, which is called "first"."""
    pool: BlockPool
    """Holds the boundaries that were passed, and has noted every copy."""
    run: Generation
    """The request."""


def speculate(name: str, runner: StateRunner, pool: BlockPool, block_tokens: int, num_spec: int) -> Speculated:
    """Decodes with every number of drafts of which every number is right, three times each in some order."""
    expected, _ = plain(name)
    run = Generation(runner, AlignSequence(pool, block_tokens, num_spec, PROMPT), "first", PROMPT)
    run.prefill(len(PROMPT) // block_tokens * block_tokens)
    run.prefill(len(PROMPT) % block_tokens)
    steps = [(drafts, right) for drafts in range(num_spec + 1) for right in range(drafts + 1)] * 3
    random.Random(1).shuffle(steps)
    for drafts, right in steps:
        ahead = expected[len(run.tokens) :][:drafts]
        run.decode(ahead[:right] + [(token + 1) % VOCAB_SIZE for token in ahead[right:]])
    return Speculated(name, block_tokens, num_spec, runner, pool, run)


CASES = tuple(itertools.product(NAMES, PLACEMENTS, SIZES))
CASE_IDS = [f"{name}-{'-'.join(placement)}-{size[0]}-{size[1]}" for name, placement, size in CASES]


@pytest.fixture(scope="module", params=CASES, ids=CASE_IDS)
def speculated(request: pytest.FixtureRequest) -> Speculated:
    """Runs each model in each placement and size."""
    name, placement, (block_tokens, num_spec) = request.param
    runner, engine = in_process(build_model(name), placement, num_spec)
    return speculate(name, runner, BlockPool(engine, BLOCK_COUNT), block_tokens, num_spec)


def test_accepted_tokens(speculated: Speculated) -> None:
    """Whatever was drafted and accepted, every accepted token has the logits of the model alone."""
    tokens, logits = plain(speculated.name)

    run, copies = speculated.run, speculated.pool.copies

    assert {copy.bias for copy in copies} == set(range(speculated.num_spec + 1))
    assert any(copy.src == copy.dst for copy in copies)
    assert any(copy.temporal_src not in (copy.src, copy.dst) for copy in copies)
    assert run.tokens == tokens[: len(run.tokens)]
    assert_close(torch.stack(run.logits), logits[: len(run.tokens) - 1], rtol=0, atol=0)


def test_boundaries(speculated: Speculated) -> None:
    """Speculation caches every boundary that it passes, and a request that hits one goes on as the model alone does."""
    tokens, logits = plain(speculated.name)
    step, pool, runner = speculated.block_tokens, speculated.pool, speculated.runner
    boundaries = [len(prefix) for prefix in pool.cached]
    assert boundaries == list(range(len(PROMPT) // step * step, len(speculated.run.tokens), step))

    for boundary in boundaries:
        prompt = tokens[: boundary + 2]
        sequence = AlignSequence(pool, step, speculated.num_spec, prompt)
        runner.reuse_attention("first", "second")
        second = Generation(runner, sequence, "second", prompt)
        second.prefill(2)
        sequence.finish()

        assert_close(torch.stack(second.logits), logits[boundary : boundary + 2], rtol=0, atol=0)


class FaultyPool(BlockPool):
    """A pool that alters its copies."""

    alter: Callable[[Copy], Copy]

    def copy(self, copy: Copy) -> None:
        """Makes another copy."""
        super().copy(self.alter(copy))


@pytest.mark.parametrize(
    "alter",
    [
        pytest.param(lambda copy: replace(copy, bias=0), id="no bias"),
        pytest.param(lambda copy: replace(copy, temporal_src=copy.src), id="temporal state of the running block"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_wrong_copies_are_noticed(name: str, alter: Callable[[Copy], Copy]) -> None:
    """The comparison has teeth: a copy that forgets the bias or the speculative block changes the logits."""
    runner, engine = in_process(build_model(name), PLACEMENTS[0], num_spec=2)
    pool = FaultyPool(engine, BLOCK_COUNT)
    pool.alter = alter

    run = speculate(name, runner, pool, block_tokens=4, num_spec=2).run

    _, logits = plain(name)
    assert not torch.equal(torch.stack(run.logits), logits[: len(run.logits)])
