"""State blocks whose contents are symbols: what a copy or a forward pass leaves in them can be told exactly.

A conv state is a window of the last tokens' inputs and room for the drafts of a pass; a token's input is named by the
prefix that ends with it, and so is the temporal state after it. So a symbol is right exactly where the prefix is.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count

import numpy as np
from numpy.typing import NDArray

from support.step_choices import Tokens
from support.steps import CopyRow

WINDOW = 3
"""Rows that a convolution looks back on."""

Symbol = bytes
ZERO: Symbol = b"0"


@dataclass
class Content:
    """What a block holds."""

    conv: list[Symbol]
    temporal: Symbol


@dataclass(frozen=True)
class Pass:
    """A forward pass of one sequence, as its worker knows it."""

    sequence: int
    tokens: Tokens
    computed: int
    num_tokens: int
    drafts: int
    accepted: int
    """How many of its tokens will turn out right, from the first draft's predecessor on."""
    offset: int
    """Accepted tokens of the last pass, less one: where its state stands."""
    blocks: tuple[int, ...]
    """Blocks of the running column and of those after it."""


@dataclass
class SymbolicMemory:
    """The blocks of a pool."""

    block_tokens: int
    spec: int
    immutable: NDArray[np.bool_]
    """Whether each block is committed, as the pool sees it at this moment."""
    blocks: list[Content] = field(init=False)

    def __post_init__(self) -> None:
        self._wrong = count()
        self.blocks = [self._garbage() for _ in self.immutable]

    def state(self, tokens: Tokens, computed: int) -> Content:
        """Tells the state after some tokens."""
        prefixes = [self._name(tokens, end) for end in range(computed - WINDOW + 1, computed + 1)]
        return Content(prefixes, prefixes[-1])

    def put(self, block: int, tokens: Tokens, computed: int) -> None:
        """Writes the state after some tokens, as one that comes from another pool."""
        state = self.state(tokens, computed)
        self._write(block, Content(state.conv + self._garbage().conv[WINDOW:], state.temporal))

    def spoil(self, block: int) -> None:
        """Writes something else."""
        self._write(block, self._garbage())

    def holds(self, block: int, tokens: Tokens, computed: int) -> bool:
        """Tells whether a block holds the state after some tokens and can be read by whoever finds it."""
        content = self.blocks[block]
        return Content(content.conv[:WINDOW], content.temporal) == self.state(tokens, computed)

    def zero(self, blocks: Iterable[int]) -> None:
        """Fills blocks with zeros."""
        for block in blocks:
            self._write(block, Content([ZERO] * (WINDOW + self.spec), ZERO))

    def copy(self, rows: Iterable[CopyRow]) -> None:
        """Copies as one phase: all sources are read before anything is written."""
        read = [
            (dst, self.blocks[src].conv[bias:], self.blocks[temporal_src].temporal, bias)
            for _, _, _, bias, src, temporal_src, dst in rows
        ]
        assert len({dst for dst, *_ in read}) == len(read)
        for dst, conv, temporal, bias in read:
            self._write(dst, Content(conv + self.blocks[dst].conv[len(conv) :], temporal))
            assert len(self.blocks[dst].conv) == len(conv) + bias

    def run(self, step: Pass) -> None:
        """Runs a forward pass: it must start from the state after the tokens computed."""
        begins = self.blocks[step.blocks[0]].conv[step.offset : step.offset + WINDOW]
        temporal = self.blocks[step.blocks[step.offset]].temporal
        assert Content(begins, temporal) == self.state(step.tokens, step.computed)
        written = step.computed + step.num_tokens - step.drafts
        right = [self._name(step.tokens, end) for end in range(written - WINDOW + 1, written + step.accepted)]
        symbols = right + [self._new() for _ in range(step.drafts + 1 - step.accepted)]
        rows = symbols + self._garbage().conv[len(symbols) :]
        for place in range(1, 1 + step.drafts):
            block = step.blocks[place]
            self._write(block, Content(self.blocks[block].conv, symbols[WINDOW - 1 + place]))
        self._write(step.blocks[0], Content(rows, symbols[WINDOW - 1]))

    def _name(self, tokens: Tokens, end: int) -> Symbol:
        return tokens.name(end, self.block_tokens) if end > 0 else ZERO

    def _write(self, block: int, content: Content) -> None:
        assert not self.immutable[block]
        self.blocks[block] = content

    def _garbage(self) -> Content:
        return Content([self._new() for _ in range(WINDOW + self.spec)], self._new())

    def _new(self) -> Symbol:
        return b"wrong %d" % next(self._wrong)
