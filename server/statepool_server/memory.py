"""The memory of the pool: an arena and a copy engine per local rank, the same block ids on each."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from statepool.copies import Column, CopyPlan, copied_bytes
from statepool.host import (
    Bytes,
    CopyEngine,
    HostEngine,
    image_checksum,
    read_image,
    read_shifted_image,
    write_image,
)
from statepool.host.regions import zero_regions
from statepool.layout import ArenaLayout
from statepool_server.arena import open_arenas
from statepool_server.arena_types import Arena, Export
from statepool_server.staging import overwriting, save, write
from statepool_server.work import MemoryWork

EngineName: TypeAlias = Literal["host", "reference", "triton"]
"""Names of `statepool.torch.ENGINES`."""


NO_BLOCKS: Column = np.empty(0, np.int64)
"""No blocks."""


def engine_for(device: str, asked: EngineName) -> EngineName:
    """Finds the copy engine of an arena: the one asked for, but on a device triton or reference in place of host."""
    if device == "cpu" or asked != "host":
        return asked
    return "triton" if find_spec("triton") else "reference"


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of memory work; it sees what the stage before has done."""

    run: Callable[[], None]
    """Does it, on every rank; blocking."""
    is_restartable: Callable[[], bool]
    """Tells whether it comes to the same when it is run again after having been cut off at any moment."""
    nbytes: int
    """Bytes of states that it writes, on all ranks."""


class Memory:
    """Everything that touches the bytes of blocks; blocking, so it is called from copy threads.

    Calls may run at the same time as long as they touch different blocks; the pool's pins see to it.
    """

    def __init__(
        self,
        layout: ArenaLayout,
        arenas: Sequence[Arena],
        engines: Sequence[CopyEngine],
        saves_in: Path | None = None,
    ) -> None:
        self._layout = layout
        self._arenas = arenas
        self._engines = engines
        self._saves_in = saves_in

    @classmethod
    def open(
        cls,
        layout: ArenaLayout,
        *,
        tp_ranks: Sequence[int],
        devices: Sequence[str],
        folder: Path,
        engine: EngineName,
        threads: int,
        is_kept: bool = False,
        saves: bool = False,
        check: Callable[[], None] = lambda: None,
    ) -> "Memory":
        """Takes the memory of every rank.

        Args:
            layout: Layout of each rank's arena.
            tp_ranks: Local ranks.
            devices: Device of each rank.
            folder: Folder of host arenas, which belongs to this process (`StateDir`).
            engine: Copy engine, see `engine_for`.
            threads: Threads of a host engine.
            is_kept: Whether the arenas that a server has left there are used again, with what they hold.
            saves: Whether copies are done so that they can be run again by another process.
            check: Is called again and again meanwhile; what it raises ends the taking, and nothing new is left.

        Raises:
            ArenaError: The memory cannot be had.
            RuntimeError: The engine is not installed.
            ValueError: The engine cannot copy such memory.
        """
        arenas = open_arenas(layout.nbytes, tp_ranks, devices, folder, is_kept=is_kept, check=check)
        try:
            engines = [
                _engine(engine_for(device, engine), arena, layout, threads)
                for device, arena in zip(devices, arenas, strict=True)
            ]
        except BaseException:
            for arena in arenas:
                arena.close(keep=is_kept)
            raise
        return cls(layout, arenas, engines, folder if saves else None)

    @classmethod
    def none(cls, layout: ArenaLayout) -> "Memory":
        """Stands for memory where none is touched."""
        return cls(layout, [], [])

    def rescue(self, other: "Memory", block_ids: Column) -> None:
        """Copies blocks from another memory of the same layout, on every rank."""
        regions = zero_regions(block_ids, self._layout)
        spans = list(zip(regions.destinations.tolist(), regions.nbytes.tolist(), strict=True))
        for ours, theirs in zip(self._arenas, other._arenas, strict=True):  # noqa: SLF001 — of our own kind
            for start, nbytes in spans:
                ours.write(start, theirs.read(start, nbytes))

    def stages(self, work: MemoryWork, number: int) -> list[Stage]:
        """Divides work into what may be done at a time.

        Args:
            work: The work.
            number: Names what is saved for it, until `forget`.
        """
        before = list[Stage]()
        if len(work.wiped_blocks) or len(work.post_copies):
            before = self._copy_stages(work.post_copies, number, work.wiped_blocks)
        if not len(work.zeroed_blocks) and not len(work.pre_copies):
            return before
        return before + self._copy_stages(work.pre_copies, number, work.zeroed_blocks)

    def forget(self, number: int) -> None:
        """Removes what was saved for work."""
        for path in self._saved(number):
            path.unlink(missing_ok=True)

    def forget_others(self, numbers: Collection[int]) -> None:
        """Removes what was saved for work that is not among these."""
        if self._saves_in is not None:
            for path in self._saves_in.glob("saved-*.*"):
                if int(path.stem.partition("-")[2]) not in numbers:
                    path.unlink(missing_ok=True)

    def _copy_stages(self, plan: CopyPlan, number: int, zeroed_blocks: Column) -> list[Stage]:
        risky, nbytes = overwriting(plan), self._written_bytes(plan, zeroed_blocks)
        if not risky.any():
            return [Stage(lambda: self._zero_and_copy(zeroed_blocks, plan), lambda: True, nbytes)]
        if self._saves_in is None:
            return [Stage(lambda: self._zero_and_copy(zeroed_blocks, plan), lambda: False, nbytes)]
        safe, saved = plan.take(~risky), plan.take(risky)

        def write() -> None:
            self._zero_and_copy(zeroed_blocks, safe)
            self._write(saved, number)

        return [
            Stage(lambda: self._save(saved, number), lambda: True, 0),  # what is saved is written in the next
            Stage(write, lambda: all(path.exists() for path in self._saved(number)), nbytes),
        ]

    def _written_bytes(self, plan: CopyPlan, zeroed_blocks: Column) -> int:
        block = self._layout.block
        return len(self._arenas) * (copied_bytes(plan, block) + len(zeroed_blocks) * block.image_bytes)

    def _zero_and_copy(self, zeroed_blocks: Column, plan: CopyPlan) -> None:
        if len(zeroed_blocks):
            self.zero(zeroed_blocks)
        if len(plan):
            self.copy(plan)

    def _save(self, plan: CopyPlan, number: int) -> None:
        for arena, path in zip(self._arenas, self._saved(number), strict=True):
            if not save(_host_memory(arena), self._layout, plan, path):
                self.forget(number)
                return

    def _write(self, plan: CopyPlan, number: int) -> None:
        paths = self._saved(number)
        if not all(path.exists() for path in paths):  # there was no room
            self.copy(plan)
            return
        for arena, path in zip(self._arenas, paths, strict=True):
            write(_host_memory(arena), self._layout, plan, path)

    def _saved(self, number: int) -> list[Path]:
        """Lists where the sources of a plan are saved, by rank."""
        if self._saves_in is None:
            return []
        return [self._saves_in / f"saved-{number}.{rank_index}" for rank_index in range(len(self._arenas))]

    def zero(self, block_ids: Column) -> None:
        """Fills blocks with zero bytes, on every rank."""
        for engine in self._engines:
            engine.zero(block_ids)

    def copy(self, plan: CopyPlan) -> None:
        """Runs a checked plan on every rank."""
        for engine in self._engines:
            engine.copy(plan)

    def read_image(self, rank_index: int, block_id: int, offset: int, length: int) -> bytes | memoryview:
        """Reads bytes of a block image; the range must lie in it. They may be the arena's own, see `read_image`."""
        return read_image(self._arenas[rank_index].read, self._layout, block_id, offset, length)

    def read_lent(
        self, rank_index: int, block_id: int, temporal_block_id: int, token_bias: int, offset: int, length: int
    ) -> bytes | memoryview:
        """Reads bytes of the image of a lent state, see `LentStates`; the range must lie in it."""
        read = self._arenas[rank_index].read
        if not token_bias:
            return read_image(read, self._layout, block_id, offset, length)
        return read_shifted_image(read, self._layout, block_id, temporal_block_id, token_bias, offset, length)

    def write_image(self, rank_index: int, block_id: int, offset: int, data: bytes | memoryview) -> None:
        """Writes bytes of a block image; the range must lie in it."""
        write_image(self._arenas[rank_index].write, self._layout, block_id, offset, data)

    def checksums(self, block_ids: Sequence[int]) -> NDArray[np.uint64]:
        """Computes a checksum of each block's states on each rank, ``[n, ranks]``; the blocks need not stand still."""
        sums = [[image_checksum(arena.read, self._layout, block) for arena in self._arenas] for block in block_ids]
        return np.array(sums, np.uint64).reshape(len(block_ids), len(self._arenas))

    def arenas(self) -> list[Bytes]:
        """Shows the arena of each rank, uint8 ``[arena bytes]``.

        Raises:
            ValueError: It is not host memory.
        """
        return [_host_memory(arena) for arena in self._arenas]

    def base_address(self, rank_index: int) -> int:
        """Tells where a rank's arena begins in this process."""
        return self._arenas[rank_index].address

    def export(self, rank_index: int) -> Export | None:
        """Tells how other processes map a rank's arena; None: none can."""
        return self._arenas[rank_index].export

    def open_descriptor(self, rank_index: int, *, read_only: bool) -> int:
        """Opens a descriptor of a rank's arena for another process; the caller closes it.

        Raises:
            OSError: There is no descriptor left, or the arena is not shareable.
        """
        return self._arenas[rank_index].open_descriptor(read_only=read_only)

    def close(self, *, keep: bool = False) -> None:
        """Gives all memory back, or leaves it for another process.

        Args:
            keep: Whether host arenas stay where they are.
        """
        for arena in self._arenas:
            arena.close(keep=keep)


def _engine(name: EngineName, arena: Arena, layout: ArenaLayout, threads: int) -> CopyEngine:
    if name == "host" and arena.memory is not None:
        return HostEngine(arena.memory, layout, threads)
    from statepool.torch.engine import ENGINES  # a second that a server of host memory need not spend

    return ENGINES[name](arena.tensor, layout, threads)


def _host_memory(arena: Arena) -> Bytes:
    if arena.memory is None:
        raise ValueError("device memory is not mapped by this process")
    return arena.memory
