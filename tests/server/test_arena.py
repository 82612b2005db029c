"""Guarantee: an arena is private, shared with whoever may map it, gone when closed, and refused with the numbers."""

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from statepool.copies import CopyPlan
from statepool.layout import ArenaLayout, BlockLayout, ConvLayout, Dtype, StateKind, StateSpec
from statepool_server.arena import HostArena, StateDir, parse_devices
from statepool_server.arena_cuda import open_cuda_arena
from statepool_server.arena_types import ArenaError
from statepool_server.memory import EngineName, Memory, engine_for

LAYOUT = ArenaLayout(
    BlockLayout.of([StateSpec("layers.0.temporal", 0, StateKind.TEMPORAL, Dtype.FLOAT32, (8, 16))], ConvLayout.SD), 4
)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Makes a folder in memory where the machine has one."""
    parent = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - mkdtemp makes a private folder in it
    with tempfile.TemporaryDirectory(prefix="statepool-test-", dir=parent) as name:
        yield Path(name)


def test_fresh_arena_is_private_zero_and_as_large_as_asked(folder: Path) -> None:
    """A new arena's file has mode 0600 and its bytes are zero."""
    arena = HostArena(folder / "rank0.arena", 3 * 4096)

    status = arena.path.stat()
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_size == len(arena.tensor) == 3 * 4096
    assert not arena.tensor.any()
    arena.close()


def test_pages_are_there_from_the_start(folder: Path) -> None:
    """Every page is allocated when the arena is open, so that no later write can run out of memory."""
    arena = HostArena(folder / "rank0.arena", 64 * 4096)

    assert arena.path.stat().st_blocks * 512 >= 64 * 4096
    arena.close()


def test_another_process_sees_the_same_bytes(folder: Path) -> None:
    """A process that maps the file reads what we write, and we read what it writes."""
    arena = HostArena(folder / "rank0.arena", 4096)
    arena.tensor[100] = 77
    program = "import mmap,sys;f=open(sys.argv[1],'r+b');m=mmap.mmap(f.fileno(),0);print(m[100]);m[200]=33"

    seen = subprocess.run(
        [sys.executable, "-c", program, str(arena.path)], check=True, capture_output=True, text=True
    ).stdout

    assert seen.strip() == "77"
    assert arena.tensor[200] == 33
    arena.close()


def test_file_of_a_dead_server_is_replaced(folder: Path) -> None:
    """Bytes that a server left behind do not come back."""
    (folder / "rank0.arena").write_bytes(b"\xff" * 8192)

    arena = HostArena(folder / "rank0.arena", 8192)

    assert not arena.tensor.any()
    arena.close()


def test_closing_removes_the_file(folder: Path) -> None:
    """Memory of tmpfs is given back at the end."""
    arena = HostArena(folder / "rank0.arena", 4096)

    arena.close()

    assert list(folder.iterdir()) == []
    with pytest.raises(ValueError, match="closed"):
        _ = arena.tensor


def test_more_than_there_is_is_refused_with_the_numbers(folder: Path) -> None:
    """An arena that does not fit is refused before it could kill the process, and leaves nothing behind."""
    available = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize

    with pytest.raises(ArenaError, match=rf"needs {available + 2**40} bytes .* are\s+available; .*--state-dir"):
        HostArena(folder / "rank0.arena", available + 2**40)

    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("is_kept", [False, True])
def test_taking_that_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch, is_kept: bool) -> None:
    """Memory is taken piece by piece, and what ends that leaves nothing new, but what was there before."""
    monkeypatch.setattr("statepool_server.arena.PIECE_BYTES", 4096)
    if is_kept:
        HostArena(folder / "rank0.arena", 4 * 4096).close(keep=True)
    checks: list[None] = []

    def check() -> None:
        checks.append(None)
        if len(checks) == 3:
            raise LookupError

    with pytest.raises(LookupError):
        HostArena(folder / "rank0.arena", 4 * 4096, is_kept=is_kept, check=check)

    assert len(list(folder.iterdir())) == is_kept


def test_state_dir_is_private(folder: Path) -> None:
    """A folder that others may enter is refused; a missing one is made for us alone."""
    open_folder = folder / "open"
    open_folder.mkdir()
    open_folder.chmod(0o755)

    with pytest.raises(ArenaError, match="mode 0700"):
        StateDir(open_folder)

    made = StateDir(folder / "made")
    assert stat.S_IMODE((folder / "made").stat().st_mode) == 0o700
    made.close()


def test_state_dir_that_is_a_link_is_refused(folder: Path) -> None:
    """A link in place of the folder could lead anywhere."""
    (folder / "target").mkdir(mode=0o700)
    (folder / "link").symlink_to(folder / "target")

    with pytest.raises(ArenaError, match="must be a folder"):
        StateDir(folder / "link")


def test_state_dir_has_one_user_at_a_time(folder: Path) -> None:
    """A second server is refused while the first lives, and may come after it."""
    first = StateDir(folder / "state")

    with pytest.raises(ArenaError, match="another server"):
        StateDir(folder / "state")

    first.close()
    StateDir(folder / "state").close()


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without CUDA")
def test_cuda_where_there_is_none() -> None:
    """Asking for a device that is not there is an error that names it and the way out."""
    with pytest.raises(ArenaError, match=r"cuda:1: .* 0 usable CUDA devices; --device cpu"):
        open_cuda_arena("cuda:1", 4096)


@pytest.mark.parametrize(
    ("text", "ranks", "devices"),
    [
        ("cpu", 3, ("cpu", "cpu", "cpu")),
        ("cuda:2", 2, ("cuda:2", "cuda:2")),
        ("cuda:0,3", 2, ("cuda:0", "cuda:3")),
    ],
)
def test_devices(text: str, ranks: int, devices: tuple[str, ...]) -> None:
    """One device serves all ranks; several serve one each."""
    assert parse_devices(text, ranks) == devices


@pytest.mark.parametrize("text", ["", "gpu", "cuda", "cuda:", "cuda:x", "cuda:0,1,2", "cuda:-1", "cpu:0"])
def test_other_devices_are_refused(text: str) -> None:
    """Anything else is refused by name."""
    with pytest.raises(ValueError, match="device"):
        parse_devices(text, 2)


@pytest.mark.parametrize("engine", ["host", "reference", "triton"])
def test_memory_does_everything_on_every_rank(folder: Path, engine: EngineName) -> None:
    """Copies and zeroing reach all ranks; images are each rank's own."""
    memory = Memory.open(LAYOUT, tp_ranks=(1, 3), devices=("cpu", "cpu"), folder=folder, engine=engine, threads=2)
    image_bytes = LAYOUT.block.image_bytes
    for rank_index in (0, 1):
        memory.write_image(rank_index, 1, 0, bytes([rank_index + 1]) * image_bytes)

    memory.copy(CopyPlan(*(np.array([value], np.int64) for value in (1, 2, 0, 1))))
    memory.zero(np.array([1]))

    assert [memory.read_image(rank, 2, 0, image_bytes) for rank in (0, 1)] == [b"\1" * image_bytes, b"\2" * image_bytes]
    assert memory.read_image(0, 1, 0, image_bytes) == bytes(image_bytes)
    assert memory.base_address(0) != memory.base_address(1)
    memory.close()
    assert list(folder.iterdir()) == []


def test_memory_that_is_kept(folder: Path) -> None:
    """Memory that was left is taken over with what it holds; blocks of another memory can be rescued into a new one."""

    def opened(*, is_kept: bool) -> Memory:
        return Memory.open(
            LAYOUT, tp_ranks=(0, 1), devices=("cpu", "cpu"), folder=folder, engine="host", threads=1, is_kept=is_kept
        )

    image_bytes = LAYOUT.block.image_bytes
    first = opened(is_kept=False)
    for block in (1, 2):
        first.write_image(1, block, 0, bytes([block]) * image_bytes)
    first.close(keep=True)
    second = opened(is_kept=True)
    third = opened(is_kept=False)
    third.rescue(second, np.array([2]))

    assert second.read_image(1, 1, 0, image_bytes) == b"\1" * image_bytes
    assert third.read_image(1, 1, 0, image_bytes) == bytes(image_bytes)
    assert third.read_image(1, 2, 0, image_bytes) == b"\2" * image_bytes
    second.close(keep=True)
    third.close()
    assert list(folder.iterdir()) == []


def test_memory_opens_all_ranks_or_none(folder: Path) -> None:
    """When one rank's memory cannot be had, that of the others is given back."""
    with pytest.raises(ArenaError):
        Memory.open(
            LAYOUT,
            tp_ranks=(0, 1),
            devices=("cpu", "cuda:7"),
            folder=folder,
            engine="host",
            threads=2,
        )

    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("device", "asked", "engine"),
    [
        ("cpu", "host", "host"),
        ("cuda:0", "host", "triton"),
        ("cuda:0", "reference", "reference"),
        ("cuda:0", "triton", "triton"),
    ],
)
def test_engine_of_an_arena(device: str, asked: EngineName, engine: EngineName) -> None:
    """An arena has the engine that was asked for; a device's has triton where host would be the host's."""
    assert engine_for(device, asked) == engine
