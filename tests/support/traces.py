"""Align-mode traces of the reference engine: what is asked step by step, and what must come of it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCENARIOS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "data/vectors/align_traces.json").read_text(encoding="utf-8")
)
"""Each has a pool and requests that run one after the other."""

NAMES = [f"{n}-B{s['block_size']}-S{s['num_speculative_tokens']}" for n, s in enumerate(SCENARIOS)]

Move = tuple[int, int, int, int, int, int]
"""Source and destination column, bias, and the blocks of conv source, temporal source and destination."""


@dataclass(frozen=True)
class Ask:
    """One engine step of one sequence: the commit of its last pass, and the next pass or the end."""

    accepted: int | None
    """Tokens to commit; None: the sequence is admitted by this step."""
    boundary: tuple[int, bytes] | None
    """Boundary that the commit reaches with a state at it, and its hash."""
    num_tokens: int
    """Tokens of the next pass; 0: the sequence ends."""
    num_drafts: int
    """Drafts among them."""
    expected: dict[str, Any] | None
    """The reference's step that the pass belongs to; None at the end."""
    committed: dict[str, Any] | None
    """The reference's step that is committed."""


def prefix_hash(tokens: list[int]) -> bytes:
    """Names a prefix; equal prefixes have equal names."""
    return repr(tokens).encode().ljust(8)[-64:]


def prompt_hashes(request: dict[str, Any], block_tokens: int) -> list[bytes]:
    """Names the full blocks of a prompt."""
    tokens = request["prompt_tokens"]
    return [prefix_hash(tokens[:end]) for end in range(block_tokens, len(tokens) + 1, block_tokens)]


def asks(request: dict[str, Any], block_tokens: int) -> Iterator[Ask]:
    """Lists the steps of a request."""
    before: dict[str, Any] | None = None
    for step in [*request["steps"], None]:
        yield Ask(
            accepted=None if before is None else before["num_accepted_tokens"],
            boundary=None if before is None else _boundary(request, before, block_tokens),
            num_tokens=0 if step is None else step["num_scheduled_tokens"],
            num_drafts=0 if step is None else step["num_draft_tokens"],
            expected=step,
            committed=before,
        )
        before = step


def _boundary(request: dict[str, Any], step: dict[str, Any], block_tokens: int) -> tuple[int, bytes] | None:
    written = step["num_computed_tokens"] + step["num_scheduled_tokens"] - step["num_draft_tokens"]
    computed = written + step["num_accepted_tokens"] - 1
    boundary = computed - computed % block_tokens
    if boundary < written:
        return None
    prompt = request["prompt_tokens"]
    generated = [f"{request['request']}.{token}" for token in range(len(prompt), boundary)]
    return boundary, prefix_hash(prompt[:boundary]) if not generated else repr(generated).encode()[-64:]


def expected_move(copy: dict[str, int] | None) -> Move | None:
    """Reads a copy of a trace."""
    if copy is None:
        return None
    columns = copy["src_col"], copy["dst_col"], copy["token_bias"]
    return *columns, copy["conv_src"], copy["temporal_src"], copy["dst"]


class Renaming:
    """Maps our block ids to the reference's: the same one to the same one while both keep a block in use."""

    def __init__(self) -> None:
        self._ours: dict[int, int] = {0: 0}

    def expect(self, ours: list[int], theirs: list[int]) -> None:
        """Asserts that two tables name the same blocks; names that are new to a table are taken as they come."""
        assert len(ours) == len(theirs)
        self._ours.update(zip(ours, theirs, strict=True))
        assert [self._ours[block] for block in ours] == theirs
        assert len(set(ours)) == len(set(theirs))

    def __getitem__(self, block: int) -> int:
        return self._ours[block]
