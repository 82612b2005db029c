"""Guarantee: on a device, the engines do exactly what they do in host memory, in the order of streams."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from statepool.copies import CopyPlan
from statepool.layout import ArenaLayout, Arrangement, BlockLayout, ConvLayout, Dtype, StateKind, StateSpec
from statepool.torch import ENGINES
from statepool.torch.triton_engine import TritonEngine
from statepool.torch.triton_kernels import INTERPRETED
from statepool_server.memory import Memory
from support.arenas import Bytes, copied, layout_of, padding, pattern
from support.plans import plan_of, plans

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(INTERPRETED, reason="kernels are interpreted in this process; `make gpu` compiles them"),
]
DEVICE = "cuda:0"
ENGINE_NAMES = ["reference", "triton"]
LAYOUTS = [(conv, arrangement) for conv in ConvLayout for arrangement in Arrangement]
LARGE = ArenaLayout(
    BlockLayout.of(
        [
            StateSpec("layers.0.temporal", 0, StateKind.TEMPORAL, Dtype.UINT8, (2**20 + 77,)),
            StateSpec("layers.0.conv.0", 0, StateKind.CONV, Dtype.UINT8, (4, 100_000)),
        ],
        ConvLayout.SD,
    ),
    40,
    Arrangement.LAYER_MAJOR,
)
"""States of many tiles, at odd addresses."""


def on_device(content: Bytes) -> torch.Tensor:
    """Makes an arena on the device with the given bytes."""
    return torch.from_numpy(content).to(DEVICE)


def moved(content: Bytes, layout: ArenaLayout, plan: CopyPlan) -> Bytes:
    """Copies with the host's reference engine, which is checked byte by byte elsewhere."""
    arena = torch.from_numpy(content.copy())
    ENGINES["reference"](arena, layout).copy(plan)
    result: Bytes = arena.numpy()
    return result


@pytest.mark.parametrize("engine", ENGINE_NAMES)
@pytest.mark.parametrize(("conv_layout", "arrangement"), LAYOUTS)
@given(plan=plans())
@settings(max_examples=60, deadline=None)
def test_any_plan(engine: str, conv_layout: ConvLayout, arrangement: Arrangement, plan: CopyPlan) -> None:
    """A plan of any shape leaves every state byte of every block as the oracle says."""
    layout = layout_of(conv_layout, arrangement)
    content = pattern(layout)
    arena = on_device(content)

    ENGINES[engine](arena, layout).copy(plan)

    states = ~padding(layout)
    assert np.array_equal(arena.cpu().numpy() * states, copied(content, layout, plan) * states)


@pytest.mark.parametrize("scratch_bytes", [1, 2**20, 2**30])
def test_many_tiles(scratch_bytes: int) -> None:
    """Chains, swaps and shifts in place of large states are right, however little scratch memory there is."""
    content = pattern(LARGE)
    arena = on_device(content)
    rows = [(block, block + 1, block % 3, block + 2) for block in range(1, 20)]
    plan = plan_of([*rows, (21, 22, 0, 21), (22, 21, 1, 22), (30, 30, 3, 31), (33, 34, 1, 35)])

    TritonEngine(arena, LARGE, scratch_bytes=scratch_bytes).copy(plan)

    assert np.array_equal(arena.cpu().numpy(), moved(content, LARGE, plan))


@pytest.mark.parametrize("engine", ENGINE_NAMES)
def test_zeroing(engine: str) -> None:
    """Zeroing clears every state of the blocks and no state of another."""
    content = pattern(LARGE)
    arena = on_device(content)

    ENGINES[engine](arena, LARGE).zero(np.array([2, 5]))

    for spec in LARGE.tensors:
        for block in (2, 5):
            start = spec.arena_offset + block * spec.block_stride
            content[start : start + spec.state.nbytes] = 0
    assert np.array_equal(arena.cpu().numpy(), content)


@pytest.mark.parametrize("engine", ENGINE_NAMES)
def test_disjoint_copies_at_the_same_time(engine: str) -> None:
    """Copies of different blocks may run on several threads at once."""
    content = pattern(LARGE)
    arena = on_device(content)
    runner = ENGINES[engine](arena, LARGE)
    halves = [plan_of([(1, 2, 1, 1), (3, 3, 2, 3)]), plan_of([(11, 12, 0, 13), (14, 15, 3, 14)])]

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(runner.copy, halves))

    assert np.array_equal(arena.cpu().numpy(), moved(moved(content, LARGE, halves[0]), LARGE, halves[1]))


def test_enqueued_copies_are_ordered_by_their_stream() -> None:
    """A plan put into a stream sees what the stream did before, and what comes after sees the plan's result."""
    arena = torch.zeros(LARGE.nbytes, dtype=torch.uint8, device=DEVICE)
    engine = TritonEngine(arena, LARGE)
    plan = plan_of([(1, 2, 0, 1)])
    stream = torch.cuda.Stream(DEVICE)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(DEVICE))

    with torch.cuda.stream(stream):
        arena.fill_(7)
        engine.enqueue(plan)
        plan.src_blocks[:], plan.dst_blocks[:] = 0, 0  # the columns may be used again at once
        seen = arena.clone()
        arena.fill_(8)
    stream.synchronize()

    assert bool((seen == 7).all())
    assert bool((arena == 8).all())


def test_far_into_a_large_arena() -> None:
    """Offsets beyond 32 bits are right."""
    state = StateSpec("layers.0.temporal", 0, StateKind.TEMPORAL, Dtype.UINT8, (2**20,))
    layout = ArenaLayout(BlockLayout.of([state], ConvLayout.SD), 5 * 2**10)
    arena = torch.zeros(layout.nbytes, dtype=torch.uint8, device=DEVICE)
    blocks = arena.view(layout.block_count, -1)
    last = layout.block_count - 1
    blocks[1], blocks[last] = 11, 22
    torch.cuda.synchronize(DEVICE)

    TritonEngine(arena, layout).copy(plan_of([(last, 1, 0, last), (1, last, 0, 1)]))

    assert bool((blocks[1] == 22).all())
    assert bool((blocks[last] == 11).all())
    assert not blocks[2:last].any()


def test_memory_of_a_server(tmp_path: Path) -> None:
    """A server's memory on a device copies, zeroes, reads and writes images."""
    memory = Memory.open(LARGE, tp_ranks=(0,), devices=(DEVICE,), folder=tmp_path, engine="host", threads=2)
    image = np.random.default_rng(1).integers(1, 256, LARGE.block.image_bytes, np.uint8).tobytes()
    memory.write_image(0, 1, 0, image)
    written = memory.read_image(0, 1, 0, len(image))

    memory.copy(plan_of([(1, 2, 0, 1)]))
    memory.zero(np.array([1]))

    assert memory.read_image(0, 2, 0, len(image)) == written
    assert not any(memory.read_image(0, 1, 0, len(image)))
    memory.close()
