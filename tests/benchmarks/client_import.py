"""Importing both clients in a fresh interpreter, against importing gRPC alone; the bar is that of the design."""

import subprocess
import sys

REPEATS = 15
BAR = "<= 2.5"
Row = tuple[str, float, str, str]
"""Name, value, unit, bar."""

GRPC = "import grpc"
CLIENT = "from statepool import AsyncClient, Client"
WITH_NUMPY = f"{CLIENT}; from statepool.calls import blocks, images, pool, sessions"
"""What the first calls load besides: numpy, above all."""


def _seconds(statement: str) -> float:
    """Measures one import in an interpreter of its own, without the interpreter's own start."""
    code = f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return float(done.stdout)


def best_seconds() -> dict[str, float]:
    """Measures each import as the best of `REPEATS`, in turns, so that all see the same machine."""
    statements = GRPC, CLIENT, WITH_NUMPY
    rounds = [[_seconds(statement) for statement in statements] for _ in range(REPEATS)]
    return {statement: min(times) for statement, times in zip(statements, zip(*rounds, strict=True), strict=True)}


def rows() -> list[Row]:
    """Measures everything."""
    best = best_seconds()
    return [
        ("import grpc", best[GRPC] * 1e3, "ms", "-"),
        ("client import / import grpc", best[CLIENT] / best[GRPC], "x", BAR),
        ("client import and first use, with numpy / import grpc", best[WITH_NUMPY] / best[GRPC], "x", "-"),
    ]


if __name__ == "__main__":
    for name, value, unit, bar in rows():
        print(f"{name:<54} {value:8.2f} {unit:<3} {bar}")
