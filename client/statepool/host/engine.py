"""What a copy engine is, and the one of host memory."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from typing import Protocol

from statepool.copies import Column, CopyPlan
from statepool.host.regions import Bytes, Regions, hazards, plan_regions, run_copies, run_zeroing, split, zero_regions
from statepool.host.shifts import copy_shifted
from statepool.layout import ArenaLayout, ConvLayout, StateKind, TensorSpec


class CopyEngine(Protocol):
    """Copies and zeroes blocks of one arena; blocking.

    Calls may run at the same time as long as they touch different blocks.
    """

    def copy(self, plan: CopyPlan) -> None:
        """Runs a plan whose biases and block ids were checked."""

    def zero(self, block_ids: Column) -> None:
        """Fills blocks with zero bytes; each id once."""


class HostEngine:
    """Copies host memory on a few threads, near the bandwidth of the machine.

    A plan becomes columns of (source, destination, bytes); in block-major order a plain copy is one region. Copies
    that read what another copy of the plan writes, and strided ones, are staged tensor by tensor, so staging never
    takes more than one tensor's share of the arena.
    """

    def __init__(self, memory: Bytes, layout: ArenaLayout, threads: int = 2) -> None:
        """Builds the engine.

        Args:
            memory: The arena, uint8, ``[arena bytes]``; kept alive.
            layout: Its layout.
            threads: Threads that copy; they live as long as the engine.
        """
        self._memory = memory
        self._layout = layout
        self._threads = threads
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="statepool-memmove")

    def copy(self, plan: CopyPlan) -> None:
        """Runs a plan."""
        if not len(plan):
            return
        staged = hazards(plan)
        if self._layout.block.conv_layout is ConvLayout.DS:
            staged |= plan.token_biases > 0
        if staged.any():
            # Direct rows neither read nor write what staged rows write, so either may run first.
            for spec in self._layout.tensors:
                self._copy_staged(plan.take(staged), spec)
            plan = plan.take(~staged)
        if len(plan):
            self._run(run_copies, plan_regions(plan, self._layout))

    def zero(self, block_ids: Column) -> None:
        """Fills blocks with zeros."""
        self._run(run_zeroing, zero_regions(block_ids, self._layout))

    def _copy_staged(self, plan: CopyPlan, spec: TensorSpec) -> None:
        """Takes all sources of one tensor before it writes the first destination."""
        kind = spec.state.kind
        sources = plan.temporal_src_blocks if kind is StateKind.TEMPORAL else plan.src_blocks
        rows = plan.token_biases if kind is StateKind.CONV else repeat(0)
        taken = [self._state(spec, block).copy() for block in sources.tolist()]
        for source, destination, left_out in zip(taken, plan.dst_blocks.tolist(), rows, strict=False):
            copy_shifted(
                source, self._state(spec, destination), spec.state, int(left_out), self._layout.block.conv_layout
            )

    def _state(self, spec: TensorSpec, block_id: int) -> Bytes:
        start = spec.arena_offset + block_id * spec.block_stride
        return self._memory[start : start + spec.state.nbytes]

    def _run(self, work: Callable[[Bytes, Regions], None], regions: Regions) -> None:
        pieces = split(regions, self._threads)
        if len(pieces) == 1:
            work(self._memory, pieces[0])
        else:
            list(self._executor.map(work, repeat(self._memory), pieces))
