"""The requests of the align workload: prompts that share a beginning, and how long each of them goes on."""

import random
from dataclasses import dataclass, field
from itertools import count

from statepool.loadtest.options import AlignWorkload, LoadOptions
from statepool.loadtest.states import NO_TOKENS, extend_digests
from statepool.refs import BlockRefs

SYSTEM_PROMPTS = 8
"""System prompts, of which the n-th is taken 1/n as often as the first."""
ABORT_SHARE = 0.02
"""Share of the requests that their users give up."""
TOKEN_IDS = 2**16


@dataclass(slots=True, eq=False, kw_only=True)
class Request:
    """A request, and what its engine and its worker know of it."""

    sequence_id: int
    """Its id, unique over all requests of an engine."""
    arrived_ns: int
    """When it arrived, by ``time.perf_counter_ns``."""
    tokens: list[int]
    """The prompt, and what was generated since."""
    prompt_tokens: int
    """Tokens of the prompt."""
    output_tokens: int
    """Tokens to generate."""
    is_aborted: bool
    """Whether it is given up while a pass is outstanding that may generate its last token."""
    rank_index: int | None
    """Rank on which its states are verified; None: nowhere."""
    digests: list[int] = field(default_factory=lambda: [NO_TOKENS])
    """Of every prefix of the tokens, where states are verified."""
    running: BlockRefs = field(default_factory=BlockRefs.empty)
    """The running block and those after it."""
    num_accepted: int = 1
    """Where the state stands in them."""

    def extend(self, token_ids: list[int]) -> None:
        """Takes tokens that became known."""
        self.tokens += token_ids
        if self.rank_index is not None:
            extend_digests(self.digests, token_ids)

    @property
    def generated(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - self.prompt_tokens


class RequestSource:
    """Makes the requests of one engine.

    Whatever a verified request can find must have been written by verified ones, on the same rank. So the verified
    requests of each rank, and all others, have system prompts of their own: the first token tells them apart.
    """

    def __init__(
        self, number: int, workload: AlignWorkload, options: LoadOptions, block_tokens: int, rank_count: int
    ) -> None:
        self._random = random.Random(f"{options.seed}.{number}")  # noqa: S311 - traffic, not secrets
        self._workload = workload
        self._verify = options.verify
        self._ids = count(1)
        tokens = max(1, workload.shared_blocks * block_tokens)
        self._system_prompts = [
            [_system_prompt(f"{options.seed}.{group}.{prompt}", group, tokens) for prompt in range(SYSTEM_PROMPTS)]
            for group in range(1 + rank_count)
        ]

    def make(self, arrived_ns: int) -> Request:
        """Makes the next request."""
        draw = self._random
        group = draw.randrange(1, len(self._system_prompts)) if draw.random() < self._verify else 0
        (shared,) = draw.choices(self._system_prompts[group], [1 / n for n in range(1, SYSTEM_PROMPTS + 1)])
        own = draw.choices(range(TOKEN_IDS), k=draw.randint(1, 2 * self._workload.prompt_tokens - 1))
        request = Request(
            sequence_id=next(self._ids),
            arrived_ns=arrived_ns,
            tokens=[],
            prompt_tokens=len(shared) + len(own),
            output_tokens=draw.randint(1, 2 * self._workload.output_tokens - 1),
            is_aborted=draw.random() < ABORT_SHARE,
            rank_index=group - 1 if group else None,
        )
        request.extend(shared + own)
        return request


def _system_prompt(seed: str, group: int, tokens: int) -> list[int]:
    return [group, *random.Random(seed).choices(range(TOKEN_IDS), k=tokens - 1)]  # noqa: S311 - traffic, not secrets
