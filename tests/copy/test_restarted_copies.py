"""Guarantee: a server's copies, cut off at any moment and run again by another process, come to what was asked for."""

import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from statepool.copies import CopyPlan
from statepool.layout import ArenaLayout, Arrangement, ConvLayout
from statepool_server.answers import Pin
from statepool_server.memory import Memory
from statepool_server.work import MemoryWork
from support.arenas import copied, layout_of, padding, pattern
from support.plans import plan_of, plans

LAYOUTS = [(conv, arrangement) for conv in ConvLayout for arrangement in Arrangement]
NO_PIN = Pin(np.empty(0, np.int64), np.empty(0, np.int64))
SHIFT = plan_of([(1, 1, 1, 2)])
on_files = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _open(folder: Path, layout: ArenaLayout, *, saves: bool = True) -> tuple[Memory, "np.memmap"]:
    """Opens memory with a pattern in it, and looks at its file from outside."""
    memory = Memory.open(layout, tp_ranks=[0], devices=["cpu"], folder=folder, engine="host", threads=2, saves=saves)
    bytes_of_arena = np.memmap(folder / "rank0.arena", np.uint8, "r+")
    bytes_of_arena[:] = pattern(layout)
    return memory, bytes_of_arena


@pytest.mark.parametrize(("conv_layout", "arrangement"), LAYOUTS)
@on_files
@given(plan=plans(), data=st.data())
def test_any_plan(
    tmp_path: Path, conv_layout: ConvLayout, arrangement: Arrangement, plan: CopyPlan, data: st.DataObject
) -> None:
    """Whatever share of a stage had reached memory when it was cut off, running it again completes it."""
    layout = layout_of(conv_layout, arrangement)
    memory, arena = _open(tmp_path, layout)
    stages = memory.stages(MemoryWork(1, NO_PIN, pre_copies=plan), 7)
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))

    for stage in stages:
        before = arena.copy()
        stage.run()
        lost = random.random(len(arena)) < random.random()
        arena[lost] = before[lost]
        assert stage.is_restartable()
        stage.run()

    states = ~padding(layout)
    assert np.array_equal(arena * states, copied(pattern(layout), layout, plan) * states)
    memory.forget(7)
    memory.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("phase", ["post_copies", "pre_copies"])
def test_phases(tmp_path: Path, phase: str) -> None:
    """A phase that overwrites its sources has a stage to save them in; blocks are zeroed with the last phase."""
    layout = layout_of(ConvLayout.SD, Arrangement.BLOCK_MAJOR)
    memory, arena = _open(tmp_path, layout)
    work = MemoryWork(1, NO_PIN, zeroed_blocks=np.array([4]), **{phase: SHIFT})

    stages = memory.stages(work, 7)
    for stage in stages:
        stage.run()

    blocks = arena.reshape(layout.block_count, -1)
    assert len(stages) == (3 if phase == "post_copies" else 2)
    assert not blocks[4].any()
    expected = copied(pattern(layout), layout, SHIFT).reshape(layout.block_count, -1)
    states = ~padding(layout).reshape(layout.block_count, -1)
    assert np.array_equal((blocks * states)[:4], (expected * states)[:4])
    memory.close()


@pytest.fixture
def small_files() -> Iterator[None]:
    """Has the kernel refuse this process files of more than a few bytes, as a full file system would."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, former)
    signal.signal(signal.SIGXFSZ, handler)


def test_no_room(tmp_path: Path, small_files: None) -> None:
    """Where the sources cannot be saved the copies are done all the same, but could not be run again."""
    layout = layout_of(ConvLayout.SD, Arrangement.BLOCK_MAJOR)
    memory, arena = _open(tmp_path, layout)
    saving, writing = memory.stages(MemoryWork(1, NO_PIN, pre_copies=SHIFT), 7)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    saving.run()
    restartable = writing.is_restartable()
    writing.run()

    states = ~padding(layout)
    assert not restartable
    assert np.array_equal(arena * states, copied(pattern(layout), layout, SHIFT) * states)
    memory.close()


def test_memory_that_nobody_goes_on_with(tmp_path: Path) -> None:
    """Nothing is saved where no other process could use it."""
    memory, _ = _open(tmp_path, layout_of(ConvLayout.SD, Arrangement.BLOCK_MAJOR), saves=False)

    (stage,) = memory.stages(MemoryWork(1, NO_PIN, pre_copies=SHIFT), 7)

    assert not stage.is_restartable()
    memory.close()


def test_what_is_saved_for_nobody(tmp_path: Path) -> None:
    """Files of work that is no longer under way are removed; others stay."""
    memory, _ = _open(tmp_path, layout_of(ConvLayout.SD, Arrangement.BLOCK_MAJOR))
    for number in (7, 8):
        memory.stages(MemoryWork(1, NO_PIN, pre_copies=SHIFT), number)[0].run()

    memory.forget_others({8})

    assert [path.name for path in tmp_path.glob("saved-*")] == ["saved-8.0"]
    memory.close()
