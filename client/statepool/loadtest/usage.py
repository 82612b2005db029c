"""How full the pool is while a load test runs."""

import asyncio
import contextlib
import time
from dataclasses import dataclass

from statepool.aio.client import AsyncClient
from statepool.errors import StatepoolError
from statepool.loadtest.options import LoadOptions


@dataclass(frozen=True, slots=True)
class UsageSample:
    """Blocks of a pool at one moment."""

    seconds: float
    """Since the measurement has begun."""
    held: int
    """Blocks with an owner or a reference."""
    releasing: int
    """Blocks without one that a copy still uses, or in quarantine."""
    evictable: int
    """Blocks that hold a prefix, and can be taken."""
    free: int
    """All others."""
    sessions: int
    """Live sessions."""
    sequences: int
    """Live sequences."""


async def watch_usage(client: AsyncClient, options: LoadOptions, samples: list[UsageSample]) -> None:
    """Looks at the pool in the middle of every slice; a look that fails is left out.

    Args:
        client: Who asks.
        options: When the slices are; the load test begins now.
        samples: Where the looks go.
    """
    start = time.monotonic() + options.warmup
    for number in range(options.slices):
        await asyncio.sleep(max(0.0, start + (number + 0.5) * options.slice_seconds - time.monotonic()))
        with contextlib.suppress(StatepoolError):
            usage = (await client.get_pool()).usage
            samples.append(
                UsageSample(
                    seconds=time.monotonic() - start,
                    held=usage.held_blocks,
                    releasing=usage.releasing_blocks,
                    evictable=usage.evictable_blocks,
                    free=usage.free_blocks,
                    sessions=usage.sessions,
                    sequences=usage.sequences,
                )
            )
