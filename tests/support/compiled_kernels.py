"""Compiles the copy kernels for devices that need not be there, and prints what came out as JSON.

A program of its own: kernels are either compiled or interpreted in a process, and the tests interpret them.
"""

import json
import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from statepool.torch.triton_engine import TILE_BYTES
from statepool.torch.triton_kernels import copy_tiles, zero_tiles

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
PARTS = ("direct", "gather", "scatter")
BYTES = ("arena", "scratch")
COLUMNS = ("plan", "tiles", "block_ids")


def compiled(kernel: Any, target: GPUTarget, **constants: object) -> dict[str, object]:
    """Compiles a kernel with the argument types that the engine gives it: aligned pointers and 32-bit numbers."""
    types = dict.fromkeys(kernel.arg_names, "i32") | dict.fromkeys(constants, "constexpr")
    types |= {name: kind for names, kind in ((BYTES, "*u8"), (COLUMNS, "*i64")) for name in names if name in types}
    places = {name: (place,) for place, name in enumerate(kernel.arg_names)}
    source = ASTSource(
        kernel,
        types,
        constexprs={places[name]: value for name, value in constants.items()},
        attrs={places[name]: [["tt.divisibility", 16]] for name, kind in types.items() if kind.startswith("*")},
    )
    result = triton.compile(source, target=target)
    text, binary = ("ptx", "cubin") if target.backend == "cuda" else ("amdgcn", "hsaco")
    return {
        "assembly": result.asm[text],
        "binary_bytes": len(result.asm[binary]),
        "shared_bytes": result.metadata.shared,
        "threads": result.metadata.num_warps * target.warp_size,
    }


if __name__ == "__main__":
    chosen = TARGETS[sys.argv[1]]
    kernels = {part: compiled(copy_tiles, chosen, PART=part, TILE_BYTES=TILE_BYTES) for part in PARTS}
    kernels["zero"] = compiled(zero_tiles, chosen, TILE_BYTES=TILE_BYTES)
    json.dump(kernels, sys.stdout)
