"""Copy engines of tensors: one meaning (`statepool.copies.CopyPlan`), one conformance suite over all of them."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Protocol

import numpy as np
import torch

from statepool.copies import Column, CopyPlan
from statepool.host import CopyEngine, HostEngine
from statepool.layout import ArenaLayout, ConvLayout, StateKind
from statepool.torch.views import state_views


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


def _host_engine(arena: torch.Tensor, layout: ArenaLayout, threads: int = 2) -> CopyEngine:
    """Builds a `statepool.host.HostEngine`."""
    if not arena.is_cpu:
        raise ValueError(f"the host engine copies host memory, the arena is on {arena.device}")
    return HostEngine(arena.numpy(), layout, threads)  # the same bytes, kept alive


def _triton_engine(arena: torch.Tensor, layout: ArenaLayout, threads: int = 1) -> CopyEngine:
    """Builds a `statepool.torch.triton_engine.TritonEngine`; only this imports triton."""
    try:
        from statepool.torch.triton_engine import TritonEngine
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise RuntimeError("the triton engine needs triton: pip install 'statepool[triton]'") from error
    return TritonEngine(arena, layout, threads)


ENGINES: Mapping[str, EngineFactory] = {"host": _host_engine, "reference": ReferenceEngine, "triton": _triton_engine}
"""Engines by name."""


def worker_engine(arena: torch.Tensor, layout: ArenaLayout, threads: int) -> CopyEngine:
    """Builds the engine of an attached worker: the host's, or on a device one that works in the worker's own stream."""
    if arena.is_cpu:
        return _host_engine(arena, layout, threads)
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
