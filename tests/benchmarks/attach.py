"""Attaching to pools of several sizes: how long it takes, what it costs, and how fast copies are through it."""

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np

from benchmarks.host_copies import measure_in
from statepool import ALL_RUNNING, Admission, Client, Commits, Execution, Schedules
from statepool.torch import attach

BLOCK_BYTES = 2**20
REPEATS = 7
SEQUENCES = 64
STEPS = 25
SIZES = {"64 MiB": 2**26, "1 GiB": 2**30, "4 GiB": 2**32}
COPIED = "1 GiB"
"""Size of the pool in which copies are measured."""
Row = tuple[str, float, str, str]
"""Name, value, unit, bar."""


@contextlib.contextmanager
def _server(arena_bytes: int) -> Iterator[str]:
    """Runs a server whose arena has so many bytes; yields its address."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        state = {"name": "state", "layer": 0, "kind": "temporal", "shape": (BLOCK_BYTES,), "dtype": "uint8"}
        config = Path(folder) / "config.json"
        config.write_text(json.dumps({"model_type": "custom", "states": [state]}), encoding="utf-8")
        program, target = Path(sys.executable).with_name("statepool-server"), f"unix:{folder}/s.sock"
        sizes = ["--model-config", str(config), "--blocks", str(arena_bytes // BLOCK_BYTES), "--log-level", "warning"]
        sizes += ["--block-tokens", "1"]  # every pass begins another block
        server = subprocess.Popen([program, *sizes, "--listen", target, "--state-dir", f"{folder}/state"])
        try:
            with grpc.insecure_channel(target) as channel:
                grpc.channel_ready_future(channel).result(timeout=60)
            yield target
        finally:
            server.terminate()
            server.wait()


def private_bytes() -> int:
    """Reads how much memory this process has for itself: a copy of an arena would be in it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def attach_costs(client: Client) -> tuple[float, float]:
    """Measures attaching up to the first byte written.

    Returns:
        The median, in seconds, and the most private memory that one has taken, in bytes.
    """
    times, taken = [], []
    for _ in range(REPEATS + 1):  # the first one loads modules
        before, started = private_bytes(), time.perf_counter()
        with attach(client) as pool:
            pool.views["state"][-1, -1] = 1
            times.append(time.perf_counter() - started)
            taken.append(private_bytes() - before)
    return sorted(times[1:])[REPEATS // 2], max(taken[1:])


def execution_costs(client: Client) -> list[float]:
    """Measures steps of `SEQUENCES` that each copy a block, done by the server, and by this attached process.

    Returns:
        The median of either, in seconds.
    """
    ids = np.arange(SEQUENCES)
    times: dict[Execution, list[float]] = {Execution.SERVER: [], Execution.WORKER: []}
    with attach(client) as pool, contextlib.ExitStack() as stack:
        engines = []
        for execution in times:
            session = stack.enter_context(client.create_session(60.0))
            scheduler = stack.enter_context(session.scheduler(execution=execution))
            rows = [Admission(number, 1) for number in range(SEQUENCES)]
            scheduler.step(admit=rows, schedule=Schedules(ids))
            engines.append((execution, session, scheduler))
        for _ in range(STEPS):  # in turns, so that a slow moment of the machine hits both
            for execution, session, scheduler in engines:
                started = time.perf_counter()
                outcome = scheduler.step(commit=Commits(ALL_RUNNING), schedule=Schedules(ALL_RUNNING))
                with pool.writing(session.session_id, session.epoch):
                    pool.run_copies(outcome)
                times[execution].append(time.perf_counter() - started)
                assert len(outcome.pre_copies) == SEQUENCES
    return [statistics.median(taken) for taken in times.values()]


def rows() -> list[Row]:
    """Measures everything."""
    found: list[Row] = []
    for name, nbytes in SIZES.items():
        with _server(nbytes) as target, Client(target) as client:
            seconds, taken = attach_costs(client)
            found.append((f"attach to {name}, first byte written", seconds * 1e3, "ms", "< 20"))
            found.append(("  private memory taken", taken / 2**20, "MiB", "0"))
            if name == COPIED:
                with attach(client) as pool:
                    arena = pool.views["state"].flatten()
                    engine, _, contiguous = measure_in(arena, pool.description.layout)
                    del arena
                found.append(
                    ("copy of 1 MiB blocks in attached memory / contiguous", engine / contiguous, "x", ">= 0.9")
                )
                by_server, by_worker = execution_costs(client)
                what = f"step that copies {SEQUENCES} MiB, the worker runs the plan"
                found.append((f"{what} / the server does", by_worker / by_server, "x", ""))
                found.append((f"  {what}", by_worker * 1e3, "ms", ""))
    return found


if __name__ == "__main__":
    for name, value, unit, bar in rows():
        print(f"{name:54} {value:8.2f} {unit:6} {bar}")
