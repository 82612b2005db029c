"""The way over NIXL: blocks are read out of the source's memory into this one's, as they lie there."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from statepool import AsyncClient
from statepool.calls.images import stream_seconds
from statepool.errors import DeadlineExceededError, FeatureUnavailableError, RoleForbiddenError, UnavailableError
from statepool.transfers import DataPath, NixlEndpoint, Transfer
from statepool_server.nixl_agent import BadDescriptorError, NixlError
from statepool_server.recency import Ids
from statepool_server.service.copying import Chore
from statepool_server.service.core import Core
from statepool_server.service.data_paths import PathFailedError
from statepool_server.service.nixl_thread import NixlThread
from statepool_server.service.pinned import PinnedWork
from statepool_server.service.sinks import DirectSink


class NixlPath:
    """Reads whole images of the same layout.

    What has come counts when the source says, after it, that the states were still lent, and its checksums are found
    here.
    """

    kind = DataPath.NIXL

    def __init__(self, core: Core, nixl: NixlThread, check: Callable[[], None], patience: float) -> None:
        """Makes a path for one transfer.

        Args:
            core: What the services share.
            nixl: Makes the NIXL calls.
            check: Raises when the bytes are no longer wanted.
            patience: Seconds that a call may take, and a read on top of what its bytes need.
        """
        self._core = core
        self._nixl = nixl
        self._check = check
        self._patience = patience

    async def pull(self, source: AsyncClient, transfer: Transfer, sink: DirectSink, pinned: PinnedWork) -> int:
        """Pulls everything; see `Path.pull`.

        Raises:
            PathFailedError: It cannot be done this way. Bytes may still come as long as `pinned` holds the blocks.
        """
        try:
            with _asking():
                endpoint, theirs = await source.describe_transfer(transfer, timeout=self._patience)
            local, remote = self._places(endpoint, sink.block_ids, theirs)
            await self._read(endpoint, local, remote, pinned)
            await pinned.room(self._patience)
            self._check()
            await self._compare(source, transfer, endpoint, sink.block_ids, pinned)
        except NixlError as error:
            raise PathFailedError(error.reason, str(error)) from error
        return len(local) * sink.layout.image_bytes

    async def _read(self, endpoint: NixlEndpoint, local: Ids, remote: Ids, pinned: PinnedWork) -> None:
        seconds = self._patience + stream_seconds(len(local) * self._core.description.layout.block.image_bytes)
        try:
            async with asyncio.timeout(seconds):
                await self._nixl.call(lambda agent: agent.meet(endpoint))
                read = self._nixl.read(endpoint.name, local, remote)
                pinned.hold(read)
                await asyncio.shield(read)
        except TimeoutError:
            raise PathFailedError("timeout", f"nothing has come for {seconds:g} s; it still may") from None
        except NixlError:
            self._nixl.call(lambda agent: agent.part(endpoint.name))
            raise

    async def _compare(
        self, source: AsyncClient, transfer: Transfer, endpoint: NixlEndpoint, block_ids: Ids, pinned: PinnedWork
    ) -> None:
        """Compares checksums of both sides, which are computed at the same time."""
        known, work = self._core.description, partial(self._core.memory.checksums, block_ids.tolist())
        nbytes = len(block_ids) * known.layout.block.image_bytes * len(known.tp_ranks)
        computing = pinned.begin(work, Chore.CHECKSUM, nbytes)
        with _asking():
            theirs = await source.sum_transfer(transfer, timeout=self._patience)
        ours = await pinned.wait(computing)
        ranks = [region.tp_rank for region in endpoint.regions]
        columns = [ranks.index(tp_rank) for tp_rank in known.tp_ranks]
        if theirs.size != len(block_ids) * len(ranks) or (theirs.reshape(-1, len(ranks))[:, columns] != ours).any():
            raise PathFailedError("checksum", "what has come is not what was sent")

    def _places(self, endpoint: NixlEndpoint, ours: Ids, theirs: Ids) -> tuple[Ids, Ids]:
        """Finds the blocks of all local ranks in the lists of both agents.

        Raises:
            BadDescriptorError: The source tells of blocks that cannot be.
        """
        layout, ranks = self._core.description.layout, self._core.description.tp_ranks
        first, firsts = 0, {}
        for region in endpoint.regions:
            firsts[region.tp_rank] = first
            first += region.block_count
            if region.block_bytes != layout.block.image_bytes or not (theirs < region.block_count).all():
                raise BadDescriptorError(f"rank {region.tp_rank} has no such blocks")
        if len(theirs) != len(ours) or not set(ranks) <= firsts.keys() or not (theirs > 0).all():
            raise BadDescriptorError(f"{len(theirs)} blocks on ranks {list(firsts)}: not what was asked for")
        local = [index * layout.block_count + ours for index in range(len(ranks))]
        return np.concatenate(local), np.concatenate([firsts[rank] + theirs for rank in ranks])


@contextlib.contextmanager
def _asking() -> Iterator[None]:
    """Has the way fail where the source, and nobody else, cannot be asked or refuses this way."""
    try:
        yield
    except (FeatureUnavailableError, RoleForbiddenError) as error:
        raise PathFailedError("unavailable", error.message) from error
    except (UnavailableError, DeadlineExceededError) as error:
        raise PathFailedError("peer_gone", error.message) from error
