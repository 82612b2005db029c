"""What being observed costs: steps of a server that is scraped again and again, against one that nobody looks at."""

import asyncio
import contextlib
import tempfile
import threading
import time
import timeit
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from benchmarks.steps import SEQUENCES, Row, admit, broadcast, server, stepping
from benchmarks.turns import compare
from statepool import AsyncClient
from statepool_server.histogram import Histogram
from statepool_server.tally import Tally

PORT = 19464
SCRAPE_SECONDS = 0.2
"""Three hundred times as often as Prometheus does by default."""
BLOCK_TOKENS = 2**20
"""No pass crosses a boundary: the cheapest step, of which counting is the largest share."""


def counting_us(number: int = 200_000) -> float:
    """Measures what is counted per steady step: a clock read twice, a histogram, a number."""
    tally, seconds = Tally(), Histogram()

    def count() -> None:
        started = time.perf_counter()
        tally.steady_steps += 1
        seconds.observe(time.perf_counter() - started)

    return min(timeit.repeat(count, number=number, repeat=5)) / number * 1e6


@contextlib.contextmanager
def scraping(url: str) -> Iterator[list[int]]:
    """Scrapes until the block ends; yields a list that grows by the bytes of each scrape."""
    over, sizes = threading.Event(), list[int]()

    def scrape() -> None:
        while not over.wait(SCRAPE_SECONDS):
            with urllib.request.urlopen(url, timeout=30) as response:  # noqa: S310 — our own address
                sizes.append(len(response.read()))

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield sizes
    finally:
        over.set()
        thread.join()


async def against_unobserved(observed: str, unobserved: str) -> list[Row]:
    """Compares a step of one server with that of the other."""
    async with contextlib.AsyncExitStack() as stack:
        operations = []
        for target in (observed, unobserved):
            client = await stack.enter_async_context(AsyncClient(target))
            session = await stack.enter_async_context(await client.create_session(600))
            scheduler = await stack.enter_async_context(session.scheduler())
            await admit(scheduler, SEQUENCES)
            operations.append(stepping(scheduler, broadcast()))
        with scraping(f"http://127.0.0.1:{PORT}/metrics") as sizes:
            measured = await compare(*operations)
    share = counting_us() / measured.floor_us * 100
    return [
        (f"step of {SEQUENCES}, scraped five times a second / unobserved", measured.ratio, "x", "<= 1.03"),
        ("  counting per step / step", share, "%", "< 3"),
        (f"  scrapes meanwhile, {sizes[-1] if sizes else 0:,} bytes each", len(sizes), "", ""),
    ]


def rows() -> list[Row]:
    """Starts two servers and measures."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folders = [Path(name) / each for each in ("observed", "unobserved")]
        for folder in folders:
            folder.mkdir()
        listen = ("--metrics-listen", f"127.0.0.1:{PORT}")
        observed = stack.enter_context(server(folders[0], BLOCK_TOKENS, 4097, *listen))
        unobserved = stack.enter_context(server(folders[1], BLOCK_TOKENS, 4097))
        return asyncio.run(against_unobserved(observed, unobserved))
