"""A soak: constant load for as long as asked, and what the server process holds before, meanwhile and afterwards."""

import argparse
import asyncio
import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from service.servers import Server, until
from statepool import BlockState
from statepool.attachment import ArenaAttachment
from statepool.loadtest.options import AlignWorkload, BlocksWorkload, LoadOptions, Workload
from statepool.loadtest.run import run_load

ROUND_SECONDS = 10.0
"""After so long all clients leave and others come, so that connections, sessions and attachments are soaked too."""
SAMPLE_SECONDS = 0.5
REST_SECONDS = 3.0
"""How long nothing may change before a server counts as at rest."""
FLAGS = ("--num-spec", "2", "--blocks", "512", "--max-chunk-bytes", "1MiB")
_WORKLOADS: tuple[Workload, ...] = (
    AlignWorkload(engines=2, sequences=8, shared_blocks=2, prompt_tokens=64, output_tokens=48),
    BlocksWorkload(concurrency=2, mix="mixed", batch=8),
)
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Sample:
    """What the server process holds at a moment."""

    seconds: float
    """Since the soak began."""
    private_mib: float
    """Resident memory of the server's own: what it shares, arenas and journal, is as large as it was told to be."""
    descriptors: int
    """Open file descriptors."""
    threads: int
    """Threads."""
    free_blocks: int
    """Blank blocks of the pool."""

    @property
    def held(self) -> tuple[int, int, int]:
        """What must come back to where it was."""
        return self.descriptors, self.threads, self.free_blocks


class Soak:
    """One server under load.

    Attributes:
        samples: What was seen under load.
        operations: Operations of all clients.
        errors: Operations that failed.
        mismatches: What was not as it had to be, by the load test's own checks.
    """

    def __init__(self, server: Server) -> None:
        self.samples: list[Sample] = []
        self.operations = self.errors = 0
        self.mismatches: list[str] = []
        self._server = server
        self._client = server.client()
        self._process = psutil.Process(server.process.pid)
        self._began = time.monotonic()

    def rest(self) -> Sample:
        """Waits until everybody has left, empties the pool, and looks at the server when it has come to rest."""
        client = self._client
        until(lambda: not client.get_pool().usage.sessions and not client.list_attachments(), "everybody to leave")
        with client.create_session(60.0) as session:
            for page in list(client.list_blocks(states=[BlockState.EVICTABLE])):
                session.evict_blocks(page.blocks)
        seen = [self._sample()]
        while seen[-1].seconds - seen[0].seconds < REST_SECONDS:
            time.sleep(SAMPLE_SECONDS)
            sample = self._sample()
            seen = [*seen, sample] if sample.held == seen[0].held else [sample]
        return seen[-1]

    def load(self, rounds: int, round_seconds: float) -> None:
        """Loads the server, in rounds of new clients, and samples it."""
        with self._sampling():
            for _ in range(rounds):
                with self._attached():
                    asyncio.run(self._round(round_seconds))

    def slope_mib_per_hour(self) -> float:
        """Fits a line through the private memory of the second half of the samples."""
        half = self.samples[len(self.samples) // 2 :]
        slope = np.polyfit([sample.seconds for sample in half], [sample.private_mib for sample in half], 1)[0]
        return float(slope * 3600)

    def close(self) -> None:
        """Ends the soak's own connection."""
        self._client.close()

    async def _round(self, seconds: float) -> None:
        reports = await asyncio.gather(
            *(run_load(self._options(workload, seconds), lambda _progress: None) for workload in _WORKLOADS)
        )
        for report in reports:
            total = report.total()
            self.operations += total.operations
            self.errors += total.errors.total()
            self.mismatches += report.mismatches

    def _options(self, workload: Workload, seconds: float) -> LoadOptions:
        return LoadOptions(
            target=self._server.target,
            duration=seconds,
            warmup=0.0,
            workload=workload,
            rate=0.0,
            processes=1,
            verify=0.25,
            seed=secrets.randbelow(2**32),
        )

    @contextmanager
    def _attached(self) -> Iterator[None]:
        """Keeps a worker's attachment to each rank for a round."""
        pool = self._client.get_pool()
        attachments = []
        for rank_index in range(len(pool.tp_ranks)):
            offer = self._client.attach_pool(rank_index=rank_index)
            attachments.append(
                ArenaAttachment(
                    offer.socket_path, offer.token, nbytes=pool.layout.nbytes, read_only=False, timeout=30.0
                )
            )
        try:
            yield
        finally:
            for attachment in attachments:
                attachment.detach()

    @contextmanager
    def _sampling(self) -> Iterator[None]:
        done = threading.Event()

        def sample() -> None:
            while not done.wait(SAMPLE_SECONDS):
                self.samples.append(self._sample())

        thread = threading.Thread(target=sample)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _sample(self) -> Sample:
        free_blocks = self._client.get_pool().usage.free_blocks
        with self._process.oneshot():
            memory = self._process.memory_info()
            private = (memory.rss - memory.shared) / _MIB
            threads, descriptors = self._process.num_threads(), self._process.num_fds()
        return Sample(time.monotonic() - self._began, private, descriptors, threads, free_blocks)


def main() -> int:
    """Soaks a server, and prints what it held; returns 1 if something did not come back."""
    parser = argparse.ArgumentParser(prog="robustness.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long the load goes on")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), *FLAGS).wait_until_ready()
        soak = Soak(server)
        soak.load(1, ROUND_SECONDS)  # warms up: threads, import, allocator
        soak.samples.clear()
        before = soak.rest()
        soak.load(max(1, round(options.minutes * 60 / ROUND_SECONDS)), ROUND_SECONDS)
        after = soak.rest()
        soak.close()
        server.stop()
    _print_table(soak, before, after)
    return int(after.held != before.held or bool(soak.mismatches))


def _print_table(soak: Soak, before: Sample, after: Sample) -> None:
    peak = [max(sample.private_mib for sample in soak.samples), max(sample.descriptors for sample in soak.samples)]
    peak += [max(sample.threads for sample in soak.samples), min(sample.free_blocks for sample in soak.samples)]
    print(f"{'':<10}{'own MiB':>10}{'descriptors':>13}{'threads':>9}{'free blocks':>13}")
    print(
        f"{'before':<10}{before.private_mib:>10.1f}{before.descriptors:>13}{before.threads:>9}{before.free_blocks:>13}"
    )
    print(f"{'under load':<10}{peak[0]:>10.1f}{peak[1]:>13}{peak[2]:>9}{peak[3]:>13}")
    print(f"{'after':<10}{after.private_mib:>10.1f}{after.descriptors:>13}{after.threads:>9}{after.free_blocks:>13}")
    print(f"{soak.operations:,} operations, {soak.errors} errors, {len(soak.mismatches)} mismatches")
    print(f"private memory under load: {soak.slope_mib_per_hour():+.1f} MiB an hour (second half of the samples)")


if __name__ == "__main__":
    sys.exit(main())
