"""A server until its input ends: its first rank lies on a simulated device, its second cannot be shared."""

import asyncio
import contextlib
import ctypes
import sys
from pathlib import Path

import torch

from statepool.host import HostEngine
from statepool.layout import ArenaLayout
from statepool.torch.cuda_memory import DeviceBytes
from statepool_server.app import serving
from statepool_server.arena import HostArena, StateDir
from statepool_server.arena_cuda import SharedCudaArena
from statepool_server.arena_types import Arena
from statepool_server.config import ServerConfig
from statepool_server.logs import configure_logging
from statepool_server.memory import Memory
from statepool_server.planning import Plan

DEVICE = 1
"""The device of the arena, of several."""


class SimulatedArena(SharedCudaArena):
    """An arena in memory that torch takes for the host's."""

    def _zeroed(self, memory: DeviceBytes) -> torch.Tensor:
        mapped = (ctypes.c_ubyte * memory.nbytes).from_address(memory.address)
        return torch.frombuffer(mapped, dtype=torch.uint8).zero_()


class UnsharedArena(HostArena):
    """An arena that no other process can map, as on a device that cannot export memory."""

    @property
    def export(self) -> None:  # type: ignore[override]
        """None can."""


def open_memory(layout: ArenaLayout, folder: Path) -> Memory:
    """Takes the memory of both ranks."""
    arenas: list[Arena] = [SimulatedArena(DEVICE, layout.nbytes), UnsharedArena(folder / "rank1.arena", layout.nbytes)]
    return Memory(layout, arenas, [HostEngine(arena.tensor.numpy(), layout) for arena in arenas])


async def run(config: ServerConfig) -> None:
    """Serves until the input ends."""
    plan = Plan.of(config)
    with contextlib.ExitStack() as opened:
        opened.callback(StateDir(plan.state_dir).close)
        memory = open_memory(plan.description.layout, plan.state_dir)
        opened.callback(memory.close)
        async with serving(config, plan, memory, asyncio.Event()):
            print('"ready"', flush=True)
            await asyncio.to_thread(sys.stdin.read)


configure_logging("info", "json")
asyncio.run(
    run(ServerConfig(model_config=sys.argv[1], listen=[sys.argv[2]], state_dir=Path(sys.argv[3]), blocks=17, tp_size=2))
)
