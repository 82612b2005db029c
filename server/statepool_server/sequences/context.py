"""What planning a step reads: the pool around the sequences, and the sizes of align mode."""

from dataclasses import dataclass

from statepool_server.blocks import BlockTable
from statepool_server.guards import Guards
from statepool_server.prefix import PrefixIndex
from statepool_server.transfers import TransferTable

MAX_TOKENS = 2**31 - 1
"""Most tokens of a sequence; columns of a table then fit 32 bits."""


@dataclass(frozen=True, slots=True)
class StepContext:
    """The pool as planning sees it."""

    blocks: BlockTable
    """Blocks; to read, not to change."""
    prefixes: PrefixIndex
    """Prefixes; to read, not to change."""
    transfers: TransferTable
    """States that are lent; to read, not to change."""
    guards: Guards
    """Checks of blocks."""
    block_tokens: int
    """Tokens of a column."""
    num_spec: int
    """Most drafts of a pass."""
    max_sequences: int
    """Live sequences of all sessions."""
