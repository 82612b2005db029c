"""The copy engine of device memory: one launch for a whole batch over all states, planned on the device."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from statepool.copies import Column, CopyPlan
from statepool.host.regions import hazards
from statepool.layout import ArenaLayout
from statepool.torch.tiles import tile_table
from statepool.torch.triton_kernels import INTERPRETED, copy_tiles, zero_tiles

TILE_BYTES = 2**14
"""Bytes that one program moves: eight vectors of 16 bytes in flight for each of its 128 threads."""

SCRATCH_BYTES = 64 * 2**20
"""Bytes of scratch memory that a call may take."""

Part: TypeAlias = Literal["direct", "gather", "scatter"]
"""What a launch does: copies, reads into scratch memory, or writes from there."""

Columns: TypeAlias = NDArray[np.int64]
"""Sources, destinations, biases and temporal sources, ``[4, rows]``."""

_INTERPRETER = threading.Lock()
"""Triton's interpreter keeps the running program in a global: one launch at a time."""


class TritonEngine:
    """Copies the memory of one device; a whole plan is one launch.

    The host sends the columns of the plan. The programs, one for each row and tile, find out on the device what to
    move, from a table of tiles that is there. Programs run in any order, so rows whose order matters go through scratch
    memory, in one launch that reads and one that writes: whole rows where one row reads what another writes, and the
    conv states of rows that shift in place.
    """

    def __init__(
        self,
        arena: torch.Tensor,
        layout: ArenaLayout,
        threads: int = 1,
        *,
        tile_bytes: int = TILE_BYTES,
        scratch_bytes: int = SCRATCH_BYTES,
        own_streams: bool = True,
    ) -> None:
        """Builds the engine and compiles its kernels.

        Args:
            arena: uint8, ``[arena bytes]``, on a device; in host memory where Triton interprets.
            layout: Its layout.
            threads: Without effect; the device copies.
            tile_bytes: Bytes that one program moves, a power of two from 32.
            scratch_bytes: Bytes of scratch memory that a call may take; one tile of each staged row is taken anyway.
            own_streams: Whether calls have a stream of their thread's own and wait for it; else they go into the
                current stream, and nobody waits.

        Raises:
            ValueError: The arena is in host memory, and Triton compiles.
        """
        del threads
        if arena.is_cpu and not INTERPRETED:
            raise ValueError("the triton engine copies device memory, the arena is on cpu and TRITON_INTERPRET not set")
        table = tile_table(layout, tile_bytes)
        self._arena = arena
        self._tile_bytes = tile_bytes
        self._scratch_bytes = scratch_bytes
        self._own_streams = own_streams
        self._tiles = torch.from_numpy(table).to(arena.device)
        self._first_conv_tile = int(np.count_nonzero(table[:, 4] == 0))
        self._local = threading.local()
        self._compile()

    def copy(self, plan: CopyPlan) -> None:
        """Runs a plan after what the current stream holds, and waits for it unless it has gone into that stream."""
        with self._stream():
            self.enqueue(plan)

    def enqueue(self, plan: CopyPlan) -> None:
        """Puts a plan into the current stream of the arena's device, and does not wait for it.

        Args:
            plan: A checked plan; its columns may be changed when this returns.
        """
        if not len(plan):
            return
        columns = np.stack((plan.src_blocks, plan.dst_blocks, plan.token_biases, plan.temporal_src_blocks))
        crossing = hazards(plan)
        shifting = (plan.src_blocks == plan.dst_blocks) & (plan.token_biases > 0) & ~crossing
        with self._device():
            self._direct(columns[:, ~crossing])
            self._staged(columns[:, crossing], 0)
            self._staged(columns[:, shifting], self._first_conv_tile)

    def zero(self, block_ids: Column) -> None:
        """Fills blocks with zeros after what the current stream holds, and waits as `copy` does."""
        if not len(block_ids):
            return
        with self._stream(), self._device():
            self._launch_zeroing(self._upload(block_ids), len(block_ids))

    def _compile(self) -> None:
        """Compiles every kernel now, so that no call waits for it, by launches that move nothing."""
        with self._stream(), self._device():
            null_to_null = self._upload(np.zeros((4, 1), np.int64))
            for part in get_args(Part):
                self._launch(part, self._arena, null_to_null, range(1))
            self._launch_zeroing(null_to_null, 0)

    def _direct(self, columns: Columns) -> None:
        if columns.size:
            self._launch("direct", self._arena, self._upload(columns), range(len(self._tiles)))

    def _staged(self, columns: Columns, first_tile: int) -> None:
        """Copies through scratch memory, some tiles of all rows at a time.

        They go from the front of each state to its back, and no copy reads from further front than where it writes. So
        what was overwritten is not read again.
        """
        if not columns.size:
            return
        uploaded = self._upload(columns)
        tiles = range(first_tile, len(self._tiles))
        bytes_per_tile = columns.shape[1] * self._tile_bytes
        step = min(max(1, self._scratch_bytes // bytes_per_tile), len(tiles))
        scratch = torch.empty(step * bytes_per_tile, dtype=torch.uint8, device=self._arena.device)
        for first in range(0, len(tiles), step):
            self._launch("gather", scratch, uploaded, tiles[first : first + step])
            self._launch("scatter", scratch, uploaded, tiles[first : first + step])

    def _launch(self, part: Part, scratch: torch.Tensor, columns: torch.Tensor, tiles: range) -> None:
        rows = columns.shape[1]
        copy_tiles[(rows * len(tiles),)](
            self._arena,
            scratch,
            columns,
            rows,
            self._tiles,
            tiles.start,
            len(tiles),
            PART=part,
            TILE_BYTES=self._tile_bytes,
        )

    def _launch_zeroing(self, block_ids: torch.Tensor, blocks: int) -> None:
        tiles = len(self._tiles)
        zero_tiles[(blocks * tiles,)](self._arena, block_ids, self._tiles, tiles, TILE_BYTES=self._tile_bytes)

    def _upload(self, columns: Columns | Column) -> torch.Tensor:
        """Copies columns to the device; through pinned memory, so that it does not wait for the stream."""
        here = torch.from_numpy(np.array(columns, np.int64, order="C"))
        return here.pin_memory().to(self._arena.device, non_blocking=True) if self._arena.is_cuda else here

    def _device(self) -> AbstractContextManager[object]:
        """Makes the arena's device the one that Triton launches on."""
        return _INTERPRETER if INTERPRETED else torch.cuda.device(self._arena.device)

    @contextmanager
    def _stream(self) -> Iterator[None]:
        """Makes a stream of this thread the current one, and waits for it at the end, where calls have their own."""
        if not (self._arena.is_cuda and self._own_streams):
            yield
            return
        if not hasattr(self._local, "stream"):
            self._local.stream = torch.cuda.Stream(self._arena.device)  # type: ignore[no-untyped-call]
        stream: torch.cuda.Stream = self._local.stream
        stream.wait_stream(torch.cuda.current_stream(self._arena.device))
        with torch.cuda.stream(stream):
            try:
                yield
            finally:
                stream.synchronize()
