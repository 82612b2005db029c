"""One sequence in align mode, as the design tells it: a whole list of columns, nulls included, one `if` at a time."""

from dataclasses import dataclass, field
from typing import NamedTuple

NULL = 0


class ModelCopy(NamedTuple):
    """A copy between columns."""

    src_column: int
    dst_column: int
    bias: int
    src: int
    temporal_src: int
    dst: int


@dataclass
class ModelPass:
    """A forward pass that is scheduled and not yet committed."""

    tokens: int
    drafts: int


@dataclass
class ModelSequence:
    """One sequence."""

    namespace: str = ""
    num_computed: int = 0
    num_accepted: int = 1
    table: list[int] = field(default_factory=list)
    running: int | None = None
    grown: bool = False
    last_state: int | None = None
    outstanding: ModelPass | None = None
    touched: int = 0
    """Last step that reads or writes its blocks."""

    def window(self, spec: int) -> tuple[int, list[int]] | None:
        """Shows the running column and the blocks from there on that a pass may write."""
        return None if self.running is None else (self.running, self.table[self.running : self.running + 1 + spec])

    def state(self, block_tokens: int) -> tuple[int, int, int]:
        """Tells where its state stands: blocks of the conv and temporal states, and rows that are left out."""
        bias = self.num_accepted - 1
        column = (self.num_computed - 1) // block_tokens if self.running is None else self.running
        image = (self.table[column], self.table[column + bias], bias)
        assert NULL not in image[:2]
        return image

    def commit(self, accepted: int, block_tokens: int) -> tuple[int | None, ModelCopy | None]:
        """Takes the result of the outstanding pass; returns the boundary reached, if any, and the copy it needs."""
        assert self.outstanding is not None
        assert self.running is not None
        written = self.num_computed + self.outstanding.tokens - self.outstanding.drafts
        self.outstanding = None
        self.num_computed = written + accepted - 1
        boundary = self.num_computed // block_tokens * block_tokens
        if boundary < written:
            self.num_accepted = accepted
            return None, None
        bias, column = boundary - written, boundary // block_tokens - 1
        if column == self.running:
            self.num_accepted = 1
            if bias == 0:
                return boundary, None
        else:
            self.num_accepted = accepted
        return boundary, self._copy(self.running, column, bias, self.table)

    def retire(self, block_tokens: int) -> list[int]:
        """Gives up what no pass needs any more; returns the blocks."""
        given_up = []
        for column, block in enumerate(self.table):
            behind = column < (self.num_computed - 1) // block_tokens
            last = column == self.last_state and column < -(-self.num_computed // block_tokens) - 1
            if block != NULL and (behind or last):
                given_up.append(block)
                self.table[column] = NULL
        return given_up

    def missing(self, tokens: int, block_tokens: int, spec: int) -> int:
        """Makes the table as long as the pass needs it; returns how many blocks must be appended."""
        length, needed = len(self.table), -(-(self.num_computed + tokens) // block_tokens) + spec
        if length >= needed:
            return 0
        self.last_state = length - 1 - spec if self.grown else length - 1
        target = needed - spec - 1
        while len(self.table) < target:
            self.table.append(NULL)
        if self.grown:
            for column in range(length - spec, length):
                if column < target:
                    self.table.append(self.table[column])
                    self.table[column] = NULL
        missing = needed - len(self.table)
        assert missing <= (1 if self.grown else 1 + spec)
        self.grown = True
        return missing

    def run(self, tokens: int, old_table: list[int], block_tokens: int) -> ModelCopy | None:
        """Moves the running column to where the pass ends; returns the copy that brings the state there.

        Args:
            tokens: Tokens of the pass.
            old_table: The table before it grew.
            block_tokens: Tokens of a column.
        """
        target = -(-(self.num_computed + tokens) // block_tokens) - 1
        before = (self.num_computed - 1) // block_tokens if self.running is None else self.running
        self.running = target
        if before in (-1, target):
            return None
        copy = self._copy(before, target, self.num_accepted - 1, old_table)
        self.num_accepted = 1
        return copy

    def starts_from_nothing(self) -> bool:
        """Tells whether its first pass has no state to start from."""
        return self.running is None and self.num_computed == 0

    def _copy(self, src: int, dst: int, bias: int, sources: list[int]) -> ModelCopy:
        copy = ModelCopy(src, dst, bias, sources[src], sources[src + bias], self.table[dst])
        assert NULL not in copy[3:]
        return copy
