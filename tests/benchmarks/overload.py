"""Overload: ten times the sessions and three times the sustainable rate, in an open loop, against the peak.

Two kinds of load, each against a server of its own. *Calls*: copies of the block service, each due at its own time
whatever became of those before (no coordinated omission) and good for nothing after its deadline. *Requests*: simulated
engines of the load test, whose requests arrive whatever the engines are at.
"""

import asyncio
import contextlib
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import grpc

from statepool import AsyncClient, AsyncSession, BlockRefs, StatepoolError
from statepool.loadtest.options import AlignWorkload, LoadOptions
from statepool.loadtest.pace import Arrivals
from statepool.loadtest.report import Report
from statepool.loadtest.run import run_load

SESSIONS, MORE = 2, 10
"""Sessions with which the peak is measured, and how many times as many there are then."""
EXCESS = 3.0
"""How many times the peak arrives then."""
SECONDS = 6.0
WARMUP = 2.0
ROUNDS = 2
"""Peak and overload take turns, since a shared machine has faster and slower minutes."""
DEADLINE_SECONDS = 0.8
AT_A_TIME = 2
"""Copies that each session has under way while the peak is measured: enough for the copy thread never to be idle."""
COPIES = 4
"""Copies that a session has under way at most, each to a block of its own; all together take longer than a deadline."""
TTL_SECONDS = 3.0
"""Of the sessions: each is renewed several times within a measurement, or lost."""
STATE = {"name": "state", "kind": "temporal", "shape": (8, 1024, 1024), "dtype": "float32"}
"""32 MiB: a copy takes many times as long as its call."""
ENGINES = 4
POOL = ("--block-tokens", "16", "--blocks", "513")
"""Room for all sequences of the engines that make the peak, and for less than half of ten times as many."""
Row = tuple[str, float, str, str]
"""Name, value, unit, bar."""


class Loaded:
    """A server under load."""

    def __init__(self, target: str, pid: int) -> None:
        self.target = target
        self._pid = pid

    def resident_bytes(self) -> int:
        """Tells how much memory of its own the process has, the shared arena apart."""
        text = Path(f"/proc/{self._pid}/status").read_text(encoding="ascii")
        return int(text.partition("RssAnon:")[2].split()[0]) * 1024


@contextlib.contextmanager
def server(folder: Path, *flags: str) -> Iterator[Loaded]:
    """Starts a server."""
    target = f"unix:{folder / 's.sock'}"
    command = (Path(sys.executable).with_name("statepool-server"), "--listen", target, "--log-level", "warning")
    process = subprocess.Popen([*command, "--state-dir", str(folder / "state"), "--drain-timeout", "100ms", *flags])
    try:
        with grpc.insecure_channel(target) as channel:
            grpc.channel_ready_future(channel).result(timeout=60)
        yield Loaded(target, process.pid)
    finally:
        process.terminate()
        process.wait()


class Copier:
    """A session that copies one of its blocks to others."""

    def __init__(self, session: AsyncSession, blocks: BlockRefs) -> None:
        self.session = session
        self._source = blocks[:1]
        self._idle = [blocks[row : row + 1] for row in range(1, len(blocks))]

    @classmethod
    async def open(cls, client: AsyncClient) -> "Copier":
        """Opens a session."""
        session = await client.create_session(TTL_SECONDS)
        return cls(session, await session.allocate_blocks(1 + COPIES))

    async def copy(self, seconds: float) -> bool:
        """Copies, and tells whether that was done in time."""
        if seconds <= 0 or not self._idle:
            return False
        block = self._idle.pop()
        try:
            await self.session.copy_blocks(src=self._source, dst=block, timeout=seconds)
        except StatepoolError:
            return False
        finally:
            self._idle.insert(0, block)
        return True


async def closed_loop(copiers: list[Copier]) -> float:
    """Copies in all sessions, in each as much at a time as ever helps; returns copies per second."""
    until = time.monotonic() + SECONDS

    async def work(copier: Copier) -> int:
        count = 0
        while time.monotonic() < until:
            if await copier.copy(DEADLINE_SECONDS):
                count += 1
        return count

    return sum(await asyncio.gather(*map(work, copiers * AT_A_TIME))) / SECONDS


class OpenLoop:
    """Copies that are due at random times, taken in turns by the sessions.

    Attributes:
        in_time: Copies that were done before their deadline, which counts from when they were due.
        resident_bytes: The server's memory, again and again.
    """

    def __init__(self, copiers: list[Copier], rate: float, loaded: Loaded) -> None:
        self.in_time = 0
        self.resident_bytes: list[int] = []
        self._copiers = itertools.cycle(copiers)
        self._arrivals = Arrivals(rate, "overload")
        self._loaded = loaded
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Copies for some seconds, of which the first do not count."""
        started_ns = time.perf_counter_ns()
        while (now_ns := time.perf_counter_ns()) < started_ns + (WARMUP + SECONDS) * 1e9:
            is_measured = now_ns >= started_ns + WARMUP * 1e9
            for due_ns in self._arrivals.until(now_ns):
                self._begin(due_ns, is_measured)
            if is_measured:
                self.resident_bytes.append(self._loaded.resident_bytes())
            await asyncio.sleep(max(0.0, (self._arrivals.next_ns - time.perf_counter_ns()) / 1e9))
        await asyncio.gather(*self._tasks)

    def _begin(self, due_ns: int, is_measured: bool) -> None:
        task = asyncio.create_task(self._copy(next(self._copiers), due_ns, is_measured))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _copy(self, copier: Copier, due_ns: int, is_measured: bool) -> None:
        seconds = DEADLINE_SECONDS - (time.perf_counter_ns() - due_ns) / 1e9
        if await copier.copy(seconds) and is_measured:
            self.in_time += 1


async def calls(loaded: Loaded) -> list[Row]:
    """Measures copies."""
    async with AsyncClient(loaded.target) as client:
        copiers = [await Copier.open(client) for _ in range(MORE * SESSIONS)]
        peaks, loops = list[float](), list[OpenLoop]()
        for _ in range(ROUNDS):
            peaks.append(await closed_loop(copiers[:SESSIONS]))
            loops.append(OpenLoop(copiers, EXCESS * peaks[-1], loaded))
            await loops[-1].run()
        lost = sum(copier.session.error is not None for copier in copiers)
    return [
        *_compared("copies in time", [loop.in_time / SECONDS for loop in loops], peaks),
        ("  sessions lost", lost, "", "0"),
        ("  memory at the end / after the warm-up", _growth(loops[-1].resident_bytes), "x", "1"),
    ]


async def requests(loaded: Loaded) -> list[Row]:
    """Measures the tokens that engines generate."""
    peaks, loads, resident_bytes = list[Report](), list[Report](), list[int]()
    for _ in range(ROUNDS):
        peaks.append(await _engines(loaded, ENGINES, rate=0.0))
        loads.append(await _engines(loaded, MORE * ENGINES, EXCESS * peaks[-1].total().counts["finished"] / SECONDS))
        resident_bytes.append(loaded.resident_bytes())
    good, peak = (
        [report.total().counts["generated_tokens"] / SECONDS for report in reports] for reports in (loads, peaks)
    )
    return [
        *_compared("tokens generated", good, peak),
        ("  errors, lost sessions among them", sum(load.total().errors.total() for load in loads), "", "0"),
        ("  memory after the last round / after the first", _growth(resident_bytes), "x", "1"),
    ]


async def _engines(loaded: Loaded, engines: int, rate: float) -> Report:
    workload = AlignWorkload(engines=engines, sequences=8, shared_blocks=2, prompt_tokens=16, output_tokens=16)
    options = LoadOptions(
        target=loaded.target,
        duration=SECONDS,
        warmup=WARMUP,
        workload=workload,
        rate=rate,
        processes=1,
        verify=0.0,
        seed=1,
    )
    return await run_load(options, lambda _progress: None)


def _compared(what: str, good: list[float], peaks: list[float]) -> list[Row]:
    return [
        (f"{what} at {EXCESS:g} x the peak, {MORE} x the sessions / peak", sum(good) / sum(peaks), "x", ">= 0.8"),
        (f"  {what} at the peak", sum(peaks) / ROUNDS, "per s", ""),
    ]


def _growth(resident_bytes: list[int]) -> float:
    return resident_bytes[-1] / resident_bytes[0]


def rows() -> list[Row]:
    """Starts both servers, one after the other, and measures."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:  # noqa: S108
        folder = Path(name)
        model = folder / "config.json"
        model.write_text(json.dumps({"model_type": "custom", "states": [STATE]}), encoding="utf-8")
        blocks = str((1 + COPIES) * MORE * SESSIONS + 1)
        with server(folder, "--model-config", str(model), "--blocks", blocks, "--copy-threads", "1") as loaded:
            measured = asyncio.run(calls(loaded))
        with server(folder, "--model-config", "lfm2", "--tp-size", "8", "--tp-ranks", "0", *POOL) as loaded:
            return measured + asyncio.run(requests(loaded))


if __name__ == "__main__":
    for name, value, unit, bar in rows():
        print(f"{name:62} {value:8.2f} {unit:6} {bar}")
