"""Checksums of committed blocks: taken when they are committed, compared before they are handed out, and in between.

Nothing is pinned for it, so that neither what the pool answers nor what it has room for depends on when it is done: a
block is read while it may be evicted and written anew, and what was read counts only if the block is then still at the
generation that it was at before. A committed block is immutable for as long as that is so.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import structlog
from numpy.typing import NDArray

from statepool.errors import ChecksumMismatchError, FeatureUnavailableError
from statepool.refs import BlockRefs
from statepool_server.recency import Ids
from statepool_server.service.copying import Chore
from statepool_server.service.core import Core
from statepool_server.service.ledger import Kind, ValueCodec

Mode: TypeAlias = Literal["off", "scrub", "lookup"]
"""When checksums are compared; see `ServerConfig.checksums`."""

BATCH_BYTES = 8 * 2**20
"""Bytes that a copy thread reads at a time; a step of an engine may have to wait for so many."""
IDLE_SECONDS = 0.05
"""How long a committed block waits for its checksum at most, while the copy threads have time for it."""

_log = structlog.get_logger("statepool.checksums")


@dataclass(frozen=True, slots=True)
class Report:
    """What a comparison of all committed blocks has found."""

    verified: int
    """Blocks that were compared."""
    unverified: int
    """Committed blocks without a checksum."""
    condemned: BlockRefs
    """Blocks whose bytes have changed."""


class Verifier:
    """Takes checksums and compares them."""

    def __init__(self, core: Core, mode: Mode, scrub_rate: int) -> None:
        """Begins without a checksum.

        Args:
            core: What the services share.
            mode: When to compare.
            scrub_rate: Bytes a second that are compared in the background.
        """
        blocks, ranks = core.pool.blocks, len(core.description.tp_ranks)
        self._core = core
        self._blocks = blocks
        self._mode = mode
        self._block_bytes = core.description.layout.block.image_bytes * ranks
        self._batch = max(1, BATCH_BYTES // self._block_bytes)
        self._pause = self._block_bytes / scrub_rate
        self._keep(np.zeros((blocks.block_count, 1 + ranks), np.int64))
        pool, register = core.pool, core.ledger.register
        register(Kind.CONDEMN, ValueCodec(BlockRefs), lambda refs, _now: pool.condemn(refs), can_be_refused=False)
        register(Kind.PARDON, ValueCodec(type(None)), lambda _request, _now: pool.pardon(), can_be_refused=False)

    @property
    def nbytes(self) -> int:
        """Bytes of the checksums."""
        return self._table.nbytes

    def keep_in(self, column: NDArray[np.int64], former: NDArray[np.int64] | None) -> None:
        """Keeps the checksums in other memory from now on.

        Args:
            column: Where; as many bytes as the checksums have.
            former: What a verifier before this one, of the same pool, has left there; None: nothing.
        """
        column[:] = self._table.ravel() if former is None else former
        self._keep(column.reshape(self._table.shape))

    @property
    def vouches(self) -> bool:
        """Whether blocks are compared before they are handed out."""
        return self._mode == "lookup"

    async def run(self) -> None:
        """Takes checksums and compares them until cancelled."""
        if self._mode == "off":
            await asyncio.Event().wait()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._take_all())
            tasks.create_task(self._scrub())

    async def vouch_for(self, find: Callable[[], Ids]) -> None:
        """Compares the blocks that a call is about to hand out, where the mode asks for it.

        Args:
            find: Finds them; asked again after every wait, since others may be found then.

        Raises:
            ChecksumMismatchError: One has changed; it is condemned, and the call may be sent again.
            OverloadedError: The copy threads have too much to do.
        """
        vouched: set[tuple[int, int]] = set()
        while self.vouches:
            found = self._blocks.refs(np.unique(find()))
            rows = list(zip(found.block_ids.tolist(), found.generations.tolist(), strict=True))
            if vouched.issuperset(rows):
                return
            self._core.copies.check_room()
            condemned = await self._compare(found)
            if len(condemned):
                block = int(condemned.block_ids[0])
                raise ChecksumMismatchError(
                    f"the bytes of block {block} have changed since it was committed", block=block
                )
            vouched.update(rows)

    async def verify_all(self) -> Report:
        """Compares every committed block.

        Raises:
            FeatureUnavailableError: No checksums are taken.
        """
        if self._mode == "off":
            raise FeatureUnavailableError("no checksums are taken: the server was started with --checksums off")
        listed = self._blocks.refs(self._blocks.listed.nonzero()[0])
        verified, condemned = 0, []
        for start in range(0, len(listed), self._batch):
            batch = listed[start : start + self._batch]
            batch = batch[self._has_sum(batch)]
            condemned.append(await self._compare(batch))
            verified += len(batch)
        return Report(verified, len(listed) - verified, BlockRefs.concat(condemned))

    def pardon(self) -> int:
        """Ends the quarantine of all condemned blocks.

        Returns:
            Blocks that left quarantine.
        """
        return int(self._core.ledger.perform(Kind.PARDON, None))

    def _keep(self, table: NDArray[np.int64]) -> None:
        self._table = table
        self._taken_at = table[:, 0]  # generation of each checksum; none is 0
        self._sums = table[:, 1:].view(np.uint64)

    async def _take_all(self) -> None:
        """Takes the checksum of every block that has none, soon after it was committed."""
        while True:
            blocks = self._blocks
            lacking = (blocks.listed & (self._taken_at != blocks.generations)).nonzero()[0][: self._batch]
            if len(lacking):
                await self._take(blocks.refs(lacking))
            else:
                await asyncio.sleep(IDLE_SECONDS)

    async def _scrub(self) -> None:
        """Compares blocks round and round, no faster than asked."""
        last = 0
        while True:
            listed = self._blocks.listed.nonzero()[0]
            batch = listed[listed > last][: self._batch]
            last = int(batch[-1]) if len(batch) else 0
            started = time.monotonic()
            await self._compare(self._blocks.refs(batch))
            pause = max(IDLE_SECONDS, len(batch) * self._pause) - (time.monotonic() - started)
            await asyncio.sleep(max(0.0, pause))

    async def _take(self, refs: BlockRefs) -> None:
        sums = await self._read(refs)
        ids = refs.block_ids
        same = self._blocks.generations[ids] == refs.generations
        self._sums[ids[same]] = sums[same]
        self._taken_at[ids[same]] = refs.generations[same]  # last: a server that ends in between has not taken it

    async def _compare(self, refs: BlockRefs) -> BlockRefs:
        """Condemns those of the blocks that have changed since their checksums were taken."""
        refs = refs[self._has_sum(refs)]
        expected = self._sums[refs.block_ids]
        sums = await self._read(refs)
        changed = (sums != expected).any(axis=1)
        return self._condemn(refs[changed]) if changed.any() else refs[:0]

    def _condemn(self, refs: BlockRefs) -> BlockRefs:
        condemned: BlockRefs = self._core.ledger.perform(Kind.CONDEMN, refs)
        if len(condemned):
            _log.error("the bytes of committed blocks have changed", block_ids=condemned.block_ids.tolist())
        return condemned

    def _has_sum(self, refs: BlockRefs) -> NDArray[np.bool_]:
        has: NDArray[np.bool_] = self._taken_at[refs.block_ids] == refs.generations
        return has

    async def _read(self, refs: BlockRefs) -> NDArray[np.uint64]:
        ids, memory = refs.block_ids.tolist(), self._core.memory
        if not ids:
            return np.empty((0, self._sums.shape[1]), np.uint64)
        nbytes = len(ids) * self._block_bytes
        return await asyncio.shield(self._core.copies.submit(lambda: memory.checksums(ids), Chore.CHECKSUM, nbytes))
