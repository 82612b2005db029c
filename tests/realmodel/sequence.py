"""Align mode in the most obvious way: one sequence at a time on a pool of lists and dicts.

Stands in for scheduler and server where a test asks what blocks, copies and boundaries mean to a model.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from statepool.copies import CopyPlan
from statepool.torch import CopyEngine

NULL = 0
Prefix = tuple[int, ...]
"""All tokens up to a boundary; stands for their hash."""


@dataclass(frozen=True, slots=True)
class Copy:
    """One copy, of whole blocks but for the bias."""

    src: int
    """Block that conv states came from."""
    dst: int
    """Block that was written."""
    bias: int
    """Rows that conv states were shifted by."""
    temporal_src: int
    """Block that temporal states came from."""


class BlockPool:
    """Blocks with reference counts, the boundaries that are cached in them, and the engine that writes them."""

    def __init__(self, engine: CopyEngine, block_count: int) -> None:
        self.free = list(range(1, block_count))
        self.references: Counter[int] = Counter()
        self.cached: dict[Prefix, int] = {}
        self.copies: list[Copy] = []
        self._engine = engine

    def allocate(self) -> int:
        """Takes a free block; cached ones are never evicted."""
        block = self.free.pop(0)
        self.references[block] = 1
        return block

    def release(self, block: int) -> None:
        """Drops a reference; the null block has none."""
        if block == NULL:
            return
        self.references[block] -= 1
        if not self.references[block] and not self.is_cached(block):
            self.free.append(block)

    def find(self, tokens: Sequence[int], boundaries: Sequence[int]) -> tuple[int, int] | None:
        """Finds the first boundary that is cached, and takes a reference to its block."""
        for boundary in boundaries:
            block = self.cached.get(tuple(tokens[:boundary]))
            if block is not None:
                self.references[block] += 1
                return boundary, block
        return None

    def is_cached(self, block: int) -> bool:
        """Tells whether a block is immutable."""
        return block in self.cached.values()

    def zero(self, block: int) -> None:
        """Zeroes a block."""
        self._engine.zero(np.array([block]))

    def copy(self, copy: Copy) -> None:
        """Makes a copy."""
        assert NULL not in (copy.src, copy.dst, copy.temporal_src)
        assert not self.is_cached(copy.dst)
        self.copies.append(copy)
        columns = (copy.src, copy.dst, copy.bias, copy.temporal_src)
        self._engine.copy(CopyPlan(*(np.array([value]) for value in columns)))


@dataclass(frozen=True, slots=True)
class Step:
    """What the worker needs to know of a scheduled step."""

    num_computed: int
    """Tokens before the step."""
    num_tokens: int
    """Tokens of the step, drafts included."""
    num_drafts: int
    """Drafts among them."""
    num_accepted: int
    """Where in the running blocks the state before the step stands."""
    running_block_ids: tuple[int, ...]
    """The running block and the speculative ones after it."""


class AlignSequence:
    """The life of one sequence: admitted when made, then scheduled and committed in turn, finished at last."""

    def __init__(self, pool: BlockPool, block_tokens: int, num_spec: int, prompt: Sequence[int]) -> None:
        self.table: list[int] = []
        self.num_computed = 0
        self._pool = pool
        self._block_tokens = block_tokens
        self._num_spec = num_spec
        self._num_accepted = 1
        self._running: int | None = None
        self._last_state = -1
        self._step: Step | None = None
        deepest = (len(prompt) - 1) // block_tokens
        hit = pool.find(prompt, [column * block_tokens for column in range(deepest, 0, -1)])
        if hit is not None:
            self.num_computed = hit[0]
            self.table = [NULL] * (hit[0] // block_tokens - 1) + [hit[1]]

    def schedule(self, num_tokens: int, num_drafts: int = 0) -> Step:
        """Prepares the blocks for a step of so many tokens: zeroes or copies what it starts from."""
        self._retire()
        columns = -(-(self.num_computed + num_tokens) // self._block_tokens)
        running, bias = columns - 1, self._num_accepted - 1
        previous = (self.num_computed - 1) // self._block_tokens if self._running is None else self._running
        # Growing may move the block that holds the accepted temporal state, so it is looked up before.
        temporal_src = self.table[previous + bias] if previous >= 0 else NULL
        self._grow(columns + self._num_spec)
        self._running = running
        if previous < 0:
            self._pool.zero(self.table[running])
        elif previous != running:
            self._pool.copy(Copy(self.table[previous], self.table[running], bias, temporal_src))
            self._num_accepted = 1
        blocks = tuple(self.table[running : running + 1 + self._num_spec])
        assert not any(self._pool.is_cached(block) for block in blocks)
        self._step = Step(self.num_computed, num_tokens, num_drafts, self._num_accepted, blocks)
        return self._step

    def commit(self, num_accepted: int, tokens: Sequence[int]) -> None:
        """Takes the outcome of the step in: copies the state at a boundary it reached to its column, and caches it.

        Args:
            num_accepted: 1 to 1 + drafts.
            tokens: All tokens of the sequence; the accepted ones at least.
        """
        assert self._step is not None
        assert self._running is not None
        written = self.num_computed + self._step.num_tokens - self._step.num_drafts
        self.num_computed = written + num_accepted - 1
        self._num_accepted = num_accepted
        boundary = self.num_computed // self._block_tokens * self._block_tokens
        if boundary < written:
            return
        bias, column = boundary - written, boundary // self._block_tokens - 1
        if column != self._running or bias:
            temporal_src = self.table[self._running + bias]
            self._pool.copy(Copy(self.table[self._running], self.table[column], bias, temporal_src))
        if column == self._running:
            self._num_accepted = 1
        self._pool.cached.setdefault(tuple(tokens[:boundary]), self.table[column])

    def finish(self) -> None:
        """Drops all blocks, the deepest column first."""
        for block in reversed(self.table):
            self._pool.release(block)
        self.table = []

    def _retire(self) -> None:
        """Drops the columns that no later step reads."""
        for column in range((self.num_computed - 1) // self._block_tokens):
            self._drop(column)
        if 0 <= self._last_state < -(-self.num_computed // self._block_tokens) - 1:
            self._drop(self._last_state)

    def _drop(self, column: int) -> None:
        self._pool.release(self.table[column])
        self.table[column] = NULL

    def _grow(self, length: int) -> None:
        """Lengthens the table; speculative blocks that are left behind move to its end."""
        old, grown = len(self.table), self._running is not None
        if old >= length:
            return
        self._last_state = old - 1 - self._num_spec if grown else old - 1
        first_needed = length - self._num_spec - 1
        self.table += [NULL] * (first_needed - old)
        if grown:
            for column in range(old - self._num_spec, min(old, first_needed)):
                self.table.append(self.table[column])
                self.table[column] = NULL
        self.table += [self._pool.allocate() for _ in range(length - len(self.table))]
