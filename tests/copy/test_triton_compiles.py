"""Guarantee: the copy kernels compile to machine code of every supported device, and move 16 bytes at a time."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from statepool.torch.triton_engine import TILE_BYTES
from support import compiled_kernels

TARGETS = list(compiled_kernels.TARGETS)
KERNELS = [*compiled_kernels.PARTS, "zero"]
ACCESSES = {
    "sm": r"\b(?:ld|st)\.global\S*",
    "gfx": r"\b(?:global|buffer|flat)_(?:load|store)_\w+",
}
WIDE = {
    "sm": (r"ld\.global\.(v2\.b64|v4\.b32|b128)", r"st\.global\.(v2\.b64|v4\.b32|b128)"),
    "gfx": (r"(global|buffer)_load_dwordx4", r"(global|buffer)_store_dwordx4"),
}


@cache
def kernels_of(target: str) -> dict[str, dict[str, Any]]:
    """Compiles everything for a target, in a process that does not interpret."""
    done = subprocess.run(
        [sys.executable, str(Path(compiled_kernels.__file__)), target],
        env=os.environ | {"TRITON_INTERPRET": "0"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


def accesses_of(target: str, kernel: str) -> tuple[int, int, Counter[str]]:
    """Counts the loads and the stores of 16 bytes, and all accesses to device memory by their instruction."""
    family = target.rstrip("0123456789_")
    found = Counter(re.findall(ACCESSES[family], kernels_of(target)[kernel]["assembly"]))
    loads, stores = (sum(n for name, n in found.items() if re.fullmatch(form, name)) for form in WIDE[family])
    return loads, stores, found


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("target", TARGETS)
def test_machine_code(target: str, kernel: str) -> None:
    """The compiler goes all the way to a binary; no device and no vendor's toolkit is needed for it."""
    assert kernels_of(target)[kernel]["binary_bytes"] > 0


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("target", TARGETS)
def test_vectors_of_16_bytes(target: str, kernel: str) -> None:
    """The body of a tile is moved by accesses of 16 bytes per thread, as many as it takes and no more."""
    loads, stores, found = accesses_of(target, kernel)

    expected = TILE_BYTES // 16 // kernels_of(target)[kernel]["threads"]
    assert stores == expected, found
    assert loads == (0 if kernel == "zero" else expected), found


@pytest.mark.parametrize("kernel", ["direct", "zero"])
@pytest.mark.parametrize("target", TARGETS)
def test_no_detour(target: str, kernel: str) -> None:
    """Bytes go from memory to registers to memory: no thread hands them to another through shared memory."""
    assert kernels_of(target)[kernel]["shared_bytes"] == 0
