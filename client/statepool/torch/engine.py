"""Copy engines: one interface, one meaning (`statepool.copies.CopyPlan`), one conformance suite over all of them."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from itertools import repeat
from typing import Protocol

import numpy as np
import torch

from statepool.copies import Column, CopyPlan
from statepool.layout import ArenaLayout, ConvLayout, StateKind
from statepool.torch.regions import Bytes, Regions, hazards, plan_regions, run_copies, run_zeroing, split, zero_regions
from statepool.torch.views import state_views


class CopyEngine(Protocol):
    """Copies and zeroes blocks of one arena; blocking.

    Calls may run at the same time as long as they touch different blocks.
    """

    def copy(self, plan: CopyPlan) -> None:
        """Runs a plan whose biases and block ids were checked."""

    def zero(self, block_ids: Column) -> None:
        """Fills blocks with zero bytes; each id once."""


class EngineFactory(Protocol):
    """Builds a copy engine."""

    def __call__(self, arena: torch.Tensor, layout: ArenaLayout, threads: int = ...) -> CopyEngine:
        """Builds the engine of an arena, uint8, ``[arena bytes]``, with so many threads where it has any."""


class ReferenceEngine:
    """Says in plain torch what a copy is: every source is taken first, then every destination written.

    Works on any device. It stages the sources of one tensor at a time.
    """

    def __init__(self, arena: torch.Tensor, layout: ArenaLayout, threads: int = 1) -> None:
        """Builds the engine.

        Args:
            arena: uint8, ``[arena bytes]``.
            layout: Its layout.
            threads: Without effect; torch has threads of its own.
        """
        del threads
        self._views = state_views(arena, layout)
        self._layout = layout

    def copy(self, plan: CopyPlan) -> None:
        """Runs a plan."""
        for state in self._layout.block.states:
            view = self._views[state.name]
            if state.kind is StateKind.CONV:
                rows = view if self._layout.block.conv_layout is ConvLayout.SD else view.transpose(1, 2)
                _copy_rows(rows, plan.src_blocks, plan.dst_blocks, plan.token_biases)
            else:
                sources = plan.temporal_src_blocks if state.kind is StateKind.TEMPORAL else plan.src_blocks
                _copy_rows(view, sources, plan.dst_blocks, np.zeros(len(plan), np.int64))
        self._wait()

    def zero(self, block_ids: Column) -> None:
        """Fills blocks with zeros."""
        for view in self._views.values():
            for block_id in block_ids.tolist():
                view[block_id].zero_()
        self._wait()

    def _wait(self) -> None:
        device = next(iter(self._views.values())).device
        if device.type == "cuda":
            torch.cuda.synchronize(device)


class HostEngine:
    """Copies host memory on a few threads, near the bandwidth of the machine.

    A plan becomes columns of (source, destination, bytes); in block-major order a plain copy is one region. Copies
    that read what another copy of the plan writes, and strided ones, are staged tensor by tensor, so staging never
    takes more than one tensor's share of the arena.
    """

    def __init__(self, arena: torch.Tensor, layout: ArenaLayout, threads: int = 2) -> None:
        """Builds the engine.

        Args:
            arena: uint8, ``[arena bytes]``, in host memory.
            layout: Its layout.
            threads: Threads that copy; they live as long as the engine.
        """
        if not arena.is_cpu:
            raise ValueError(f"the host engine copies host memory, the arena is on {arena.device}")
        self._memory: Bytes = arena.numpy()  # the same bytes, and keeps them alive
        self._layout = layout
        self._reference = ReferenceEngine(arena, layout)
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
            self._reference.copy(plan.take(staged))
            plan = plan.take(~staged)
        if len(plan):
            self._run(run_copies, plan_regions(plan, self._layout))

    def zero(self, block_ids: Column) -> None:
        """Fills blocks with zeros."""
        self._run(run_zeroing, zero_regions(block_ids, self._layout))

    def _run(self, work: Callable[[Bytes, Regions], None], regions: Regions) -> None:
        pieces = split(regions, self._threads)
        if len(pieces) == 1:
            work(self._memory, pieces[0])
        else:
            list(self._executor.map(work, repeat(self._memory), pieces))


def _triton_engine(arena: torch.Tensor, layout: ArenaLayout, threads: int = 1) -> CopyEngine:
    """Builds a `statepool.torch.triton_engine.TritonEngine`; only this imports triton."""
    try:
        from statepool.torch.triton_engine import TritonEngine
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise RuntimeError("the triton engine needs triton: pip install 'statepool[triton]'") from error
    return TritonEngine(arena, layout, threads)


ENGINES: Mapping[str, EngineFactory] = {"host": HostEngine, "reference": ReferenceEngine, "triton": _triton_engine}
"""Engines by name."""


def worker_engine(arena: torch.Tensor, layout: ArenaLayout, threads: int) -> CopyEngine:
    """Builds the engine of an attached worker: the host's, or on a device one that works in the worker's own stream."""
    if arena.is_cpu:
        return HostEngine(arena, layout, threads)
    if not find_spec("triton"):
        return ReferenceEngine(arena, layout)
    from statepool.torch.triton_engine import TritonEngine

    return TritonEngine(arena, layout, own_streams=False)


def _copy_rows(view: torch.Tensor, sources: Column, destinations: Column, biases: Column) -> None:
    """Copies rows ``[bias:]`` of blocks of one tensor to rows ``[:length - bias]`` of others."""
    jobs = list(zip(sources.tolist(), destinations.tolist(), biases.tolist(), strict=True))
    taken = [view[source, bias:].clone() for source, _, bias in jobs]
    for (_, destination, _), rows in zip(jobs, taken, strict=True):
        view[destination, : len(rows)] = rows
