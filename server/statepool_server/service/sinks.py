"""Where received bytes go."""

from collections.abc import Sequence

from statepool.layout import BlockLayout
from statepool.results import Chunk
from statepool_server.recency import Ids
from statepool_server.service.core import Core
from statepool_server.service.data_paths import Span


class DirectSink:
    """Puts images of this pool's own layout into its blocks, as they come."""

    def __init__(self, core: Core, block_ids: Ids) -> None:
        """Takes a whole image for each block, on every local rank.

        Args:
            core: What the services share.
            block_ids: The blocks, ``[n]``.
        """
        known = core.description
        self._memory = core.memory
        self._block_ids = block_ids.tolist()
        self._rank_indices = {tp_rank: index for index, tp_rank in enumerate(known.tp_ranks)}
        self.layout: BlockLayout = known.layout.block
        self.spans: Sequence[Span] = [Span(tp_rank, 0, len(block_ids)) for tp_rank in known.tp_ranks]

    def accept(self, tp_rank: int, chunk: Chunk) -> None:
        """Writes a chunk."""
        block_id = self._block_ids[chunk.block_index]
        self._memory.write_image(self._rank_indices[tp_rank], block_id, chunk.offset, chunk.data)
