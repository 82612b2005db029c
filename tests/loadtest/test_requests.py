"""Guarantee: requests are made from a seed, share what they are meant to share, and arrive when they are due."""

from itertools import count, pairwise

import pytest

from statepool.loadtest.options import AlignWorkload, LoadOptions
from statepool.loadtest.pace import Arrivals
from statepool.loadtest.requests import SYSTEM_PROMPTS, Request, RequestSource

BLOCK_TOKENS = 4
SHARED_TOKENS = 2 * BLOCK_TOKENS
RANKS = 2
MANY = 2000
WORKLOAD = AlignWorkload(engines=2, sequences=4, shared_blocks=2, prompt_tokens=6, output_tokens=5)


def requests(number: int = 0, *, verify: float = 0.5, seed: int = 1) -> list[Request]:
    """Makes many requests of an engine."""
    options = LoadOptions(
        target="", duration=1.0, warmup=0.0, workload=WORKLOAD, rate=0.0, processes=1, verify=verify, seed=seed
    )
    source = RequestSource(number, WORKLOAD, options, BLOCK_TOKENS, RANKS)
    return [source.make(0) for _ in range(MANY)]


def system_prompt(request: Request) -> tuple[int, ...]:
    """Gives the tokens that a request shares with others."""
    return tuple(request.tokens[:SHARED_TOKENS])


def test_seed_and_engine_decide() -> None:
    """The same seed and engine make the same requests; another seed or engine makes others."""
    prompts = [request.tokens for request in requests()]

    assert [request.tokens for request in requests()] == prompts
    assert [request.tokens for request in requests(1)] != prompts
    assert [request.tokens for request in requests(seed=2)] != prompts


def test_what_verified_requests_can_find_was_written() -> None:
    """A system prompt is verified on one rank or nowhere, in every engine: whoever finds a state knows who wrote it."""
    ranks: dict[tuple[int, ...], set[int | None]] = {}

    for request in [*requests(0), *requests(1)]:
        ranks.setdefault(system_prompt(request)[:1], set()).add(request.rank_index)

    assert sorted(ranks.values(), key=str) == [{0}, {1}, {None}]


def test_engines_share_system_prompts() -> None:
    """Each of the groups has its few system prompts, which all engines use, the first one most often."""
    mine, theirs = requests(0, verify=0.0), requests(1, verify=0.0)

    prompts = [system_prompt(request) for request in mine]

    assert set(prompts) == {system_prompt(request) for request in theirs}
    assert len(set(prompts)) == SYSTEM_PROMPTS
    assert max(map(prompts.count, set(prompts))) > 2 * MANY / SYSTEM_PROMPTS


def test_lengths() -> None:
    """Every request has tokens of its own and generates some, as many as asked on average."""
    own = [request.prompt_tokens - SHARED_TOKENS for request in requests()]
    outputs = [request.output_tokens for request in requests()]

    assert (min(own), max(own)) == (1, 2 * WORKLOAD.prompt_tokens - 1)
    assert (min(outputs), max(outputs)) == (1, 2 * WORKLOAD.output_tokens - 1)


@pytest.mark.parametrize(("verify", "ranks"), [(0.0, {None}), (1.0, {0, 1})])
def test_share_of_verified_requests(verify: float, ranks: set[int | None]) -> None:
    """Nothing is verified with a share of 0, everything with 1, and each on one rank."""
    assert {request.rank_index for request in requests(verify=verify)} == ranks


def test_digests_follow_the_tokens() -> None:
    """A verified request has a digest of each prefix, none among them, whenever its tokens become known."""
    request = requests(verify=1.0)[0]

    request.extend([1, 2])

    assert len(request.digests) == 1 + len(request.tokens)
    assert request.generated == 2


def test_arrivals_do_not_depend_on_who_asks() -> None:
    """Each arrival is told once, in order, no matter how late it is asked for; the gaps come from the seed."""
    often, seldom = Arrivals(100.0, "seed"), Arrivals(100.0, "seed")
    start_ns, late_ns = often.next_ns, 10 * 10**9

    asked = [due for now_ns in range(start_ns, start_ns + late_ns, 10**8) for due in often.until(now_ns)]
    at_once = list(seldom.until(seldom.next_ns + late_ns))

    gaps = [after - before for before, after in pairwise(asked)]
    assert gaps == [after - before for before, after in pairwise(at_once)][: len(gaps)]
    assert all(gap >= 0 for gap in gaps)
    assert len(asked) == pytest.approx(1000, rel=0.15)


def test_ids_are_unique() -> None:
    """No two requests of an engine have the same sequence id."""
    assert [request.sequence_id for request in requests()] == [number for number, _ in zip(count(1), range(MANY))]
