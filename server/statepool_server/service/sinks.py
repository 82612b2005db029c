"""Where received bytes go: into blocks as they come, or converted first."""

from collections.abc import Callable, Collection, Sequence
from functools import partial

import numpy as np

from statepool.byte_chunks import UncheckedChunk
from statepool.convert import Conversion, PoolStates, plan_conversion
from statepool.convert.conversion import Image
from statepool.descriptions import Pool
from statepool.errors import LayoutMismatchError
from statepool.layout import BlockLayout
from statepool_server.recency import Ids
from statepool_server.service.core import Core
from statepool_server.service.data_paths import Sink, Span


class DirectSink:
    """Puts images of this pool's own layout into its blocks, as they come.

    Attributes:
        block_ids: The blocks, ``[n]``.
        accepted_bytes: Bytes that it has taken.
    """

    def __init__(self, core: Core, block_ids: Ids) -> None:
        """Takes a whole image for each block, on every local rank.

        Args:
            core: What the services share.
            block_ids: The blocks, ``[n]``.
        """
        known = core.description
        self._memory = core.memory
        self.block_ids = block_ids
        self.accepted_bytes = 0
        self._rank_indices = {tp_rank: index for index, tp_rank in enumerate(known.tp_ranks)}
        self.layout: BlockLayout = known.layout.block
        self.spans: Sequence[Span] = [Span(tp_rank, 0, len(block_ids)) for tp_rank in known.tp_ranks]

    def accept(self, tp_rank: int, chunks: Sequence[UncheckedChunk]) -> None:
        """Checks chunks and writes them."""
        rank_index = self._rank_indices[tp_rank]
        for chunk in chunks:
            chunk.check()
            self._memory.write_image(rank_index, int(self.block_ids[chunk.block_index]), chunk.offset, chunk.data)
            self.accepted_bytes += len(chunk.data)


class ConvertingSink:
    """Puts images of another layout into this pool's blocks.

    Images of one block come from all ranks of the source that are needed, before those of the next, so that one image
    of the source and one for each local rank are all that is kept.

    Attributes:
        accepted_bytes: Bytes that it has taken.
    """

    def __init__(self, core: Core, block_ids: Ids, source: PoolStates, conversion: Conversion) -> None:
        """Takes a whole image for each block, of every rank of the source that is needed.

        Args:
            core: What the services share.
            block_ids: The blocks, ``[n]``.
            source: What the source has.
            conversion: From there to here.
        """
        self._core = core
        self._block_ids = block_ids.tolist()
        self._conversion = conversion
        self._targets = list(core.description.tp_ranks)
        self._needed = sorted({rank for target in self._targets for rank in conversion.source_ranks(target)})
        self._image = np.empty(source.layout.image_bytes, np.uint8)
        self._made = self._blank()
        self.accepted_bytes = 0
        self.layout: BlockLayout = source.layout
        self.spans: Sequence[Span] = [
            Span(rank, index, 1) for index in range(len(self._block_ids)) for rank in self._needed
        ]

    def accept(self, tp_rank: int, chunks: Sequence[UncheckedChunk]) -> None:
        """Checks chunks and keeps them; the last of an image converts it, the last of a block writes it."""
        for chunk in chunks:
            chunk.check()
            self._keep(tp_rank, chunk)
            self.accepted_bytes += len(chunk.data)

    def _keep(self, tp_rank: int, chunk: UncheckedChunk) -> None:
        end = chunk.offset + len(chunk.data)
        self._image[chunk.offset : end] = np.frombuffer(chunk.data, np.uint8)
        if end < len(self._image):
            return
        for target, made in zip(self._targets, self._made, strict=True):
            self._conversion.place(tp_rank, self._image, target, made)
        if tp_rank == self._needed[-1]:
            for rank_index, made in enumerate(self._made):
                self._core.memory.write_image(rank_index, self._block_ids[chunk.block_index], 0, made.tobytes())
            self._made = self._blank()

    def _blank(self) -> list[Image]:
        return [np.zeros(self._core.description.layout.block.image_bytes, np.uint8) for _ in self._targets]


def sink_for(core: Core, theirs: Pool) -> Callable[[Ids], Sink]:
    """Finds out how states of another pool become states of this one.

    Args:
        core: What the services share.
        theirs: The other pool.

    Returns:
        Makes a sink for blocks.

    Raises:
        LayoutMismatchError: They do not, or the other server does not hold all ranks that are needed.
    """
    known = core.description
    ours = PoolStates(
        layout=known.layout.block,
        tp_size=known.tp_size,
        num_spec=known.num_spec,
        family=known.family,
        parameters=known.family_parameters,
    )
    if is_direct(core, theirs):
        _check_ranks(known.tp_ranks, theirs)
        return partial(DirectSink, core)
    source = PoolStates.of(theirs)
    conversion = plan_conversion(source, ours)
    _check_ranks({rank for target in known.tp_ranks for rank in conversion.source_ranks(target)}, theirs)
    return lambda block_ids: ConvertingSink(core, block_ids, source, conversion)


def is_direct(core: Core, theirs: Pool) -> bool:
    """Tells whether images of another pool are images of this one as they are."""
    known = core.description
    return (theirs.layout.block.fingerprint, theirs.tp_size) == (known.layout.block.fingerprint, known.tp_size)


def _check_ranks(needed: Collection[int], theirs: Pool) -> None:
    missing = sorted(set(needed) - set(theirs.tp_ranks))
    if missing:
        raise LayoutMismatchError(
            f"the source holds ranks {list(theirs.tp_ranks)}, and not {missing}, which are needed", field="source"
        )
