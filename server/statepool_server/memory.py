"""The memory of the pool: an arena and a copy engine per local rank, the same block ids on each."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from statepool.copies import Column, CopyPlan
from statepool.layout import ArenaLayout
from statepool.torch.engine import ENGINES, CopyEngine
from statepool.torch.images import image_checksum, read_image, write_image
from statepool_server.arena import Arena, StateDir, open_arenas

EngineName: TypeAlias = Literal["host", "reference", "triton"]
"""Names of `statepool.torch.ENGINES`."""


def engine_for(device: str, asked: EngineName) -> EngineName:
    """Finds the copy engine of an arena: the one asked for, but on a device triton or reference in place of host."""
    if device == "cpu" or asked != "host":
        return asked
    return "triton" if find_spec("triton") else "reference"


class Memory:
    """Everything that touches the bytes of blocks; blocking, so it is called from copy threads.

    Calls may run at the same time as long as they touch different blocks; the pool's pins see to it.
    """

    def __init__(
        self, layout: ArenaLayout, arenas: Sequence[Arena], engines: Sequence[CopyEngine], state_dir: StateDir
    ) -> None:
        self._layout = layout
        self._arenas = arenas
        self._engines = engines
        self._state_dir = state_dir

    @classmethod
    def open(
        cls,
        layout: ArenaLayout,
        *,
        tp_ranks: Sequence[int],
        devices: Sequence[str],
        state_dir: Path,
        engine: EngineName,
        threads: int,
    ) -> "Memory":
        """Takes the memory of every rank.

        Args:
            layout: Layout of each rank's arena.
            tp_ranks: Local ranks.
            devices: Device of each rank.
            state_dir: Folder of host arenas.
            engine: Copy engine, see `engine_for`.
            threads: Threads of a host engine.

        Raises:
            ArenaError: The memory cannot be had.
            RuntimeError: The engine is not installed.
            ValueError: The engine cannot copy such memory.
        """
        folder = StateDir(state_dir)
        arenas: list[Arena] = []
        try:
            arenas = open_arenas(layout.nbytes, tp_ranks, devices, state_dir)
            engines = [
                ENGINES[engine_for(device, engine)](arena.tensor, layout, threads)
                for device, arena in zip(devices, arenas, strict=True)
            ]
        except BaseException:
            for arena in arenas:
                arena.close()
            folder.close()
            raise
        return cls(layout, arenas, engines, folder)

    def zero(self, block_ids: Column) -> None:
        """Fills blocks with zero bytes, on every rank."""
        for engine in self._engines:
            engine.zero(block_ids)

    def copy(self, plan: CopyPlan) -> None:
        """Runs a checked plan on every rank."""
        for engine in self._engines:
            engine.copy(plan)

    def read_image(self, rank_index: int, block_id: int, offset: int, length: int) -> bytes:
        """Reads bytes of a block image; the range must lie in it."""
        return read_image(self._arenas[rank_index].tensor, self._layout, block_id, offset, length)

    def write_image(self, rank_index: int, block_id: int, offset: int, data: bytes) -> None:
        """Writes bytes of a block image; the range must lie in it."""
        write_image(self._arenas[rank_index].tensor, self._layout, block_id, offset, data)

    def checksums(self, block_ids: Sequence[int]) -> NDArray[np.uint64]:
        """Computes a checksum of each block's states on each rank, ``[n, ranks]``; the blocks need not stand still."""
        sums = [[image_checksum(arena.tensor, self._layout, block) for arena in self._arenas] for block in block_ids]
        return np.array(sums, np.uint64).reshape(len(block_ids), len(self._arenas))

    def base_address(self, rank_index: int) -> int:
        """Tells where a rank's arena begins in this process."""
        return self._arenas[rank_index].tensor.data_ptr()

    def is_shareable(self, rank_index: int) -> bool:
        """Tells whether other processes can map a rank's arena."""
        return self._arenas[rank_index].is_shareable

    def open_descriptor(self, rank_index: int, *, read_only: bool) -> int:
        """Opens a descriptor of a rank's arena for another process; the caller closes it.

        Raises:
            OSError: There is no descriptor left, or the arena is not shareable.
        """
        return self._arenas[rank_index].open_descriptor(read_only=read_only)

    def close(self) -> None:
        """Gives all memory back."""
        for arena in self._arenas:
            arena.close()
        self._state_dir.close()
