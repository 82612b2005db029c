"""What a load test is asked to do; travels to its client processes as JSON."""

import secrets
from dataclasses import dataclass, field

MIXES: dict[str, dict[str, int]] = {
    "mixed": {"state": 6, "prefix": 2, "churn": 2},
    "state": {"state": 1},
    "prefix": {"prefix": 1},
    "churn": {"churn": 1},
}
"""Weights of the cycles of each workload mix.

* state: allocate, compute copy specs, copy with and without a bias, commit, look up, free;
* prefix: look up chains of which some are committed, commit what was missed, free;
* churn: allocate and free.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """One load test."""

    target: str
    """Where the server listens."""
    duration: float
    """Seconds that are measured."""
    warmup: float
    """Seconds before that, not measured."""
    concurrency: int
    """Lanes over all processes; a lane has one operation under way."""
    rate: float
    """Operations per second over all lanes (open loop); 0: as many as come (closed loop)."""
    processes: int
    """Client processes."""
    mix: str
    """A name of `MIXES`."""
    batch: int
    """Blocks per operation."""
    verify: float
    """Share of state cycles whose bytes are written, read back and compared, 0 to 1."""
    seed: int
    """Seed of everything random but `namespace`."""
    namespace: str = field(default_factory=lambda: f"loadtest.{secrets.token_hex(8)}")
    """Namespace of the run's prefix hashes, so that a run does not find what another has left in the pool."""
