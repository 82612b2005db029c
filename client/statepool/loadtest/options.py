"""What a load test is asked to do; travels to its client processes as JSON."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from statepool.security import Tls

MIXES: dict[str, dict[str, int]] = {
    "mixed": {"state": 6, "prefix": 2, "churn": 2},
    "state": {"state": 1},
    "prefix": {"prefix": 1},
    "churn": {"churn": 1},
}
"""Weights of the cycles of each mix of the blocks workload.

* state: allocate, compute copy specs, copy with and without a bias, commit, look up, free;
* prefix: look up chains of which some are committed, commit what was missed, free;
* churn: allocate and free.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlocksWorkload:
    """Calls of the block service, by lanes."""

    concurrency: int
    """Lanes over all processes; a lane has one operation under way."""
    mix: str
    """A name of `MIXES`."""
    batch: int
    """Blocks per operation."""
    name: str = "blocks"
    """Tells the workloads apart in JSON."""

    @property
    def callers(self) -> int:
        """Lanes over all processes."""
        return self.concurrency

    @property
    def operations(self) -> tuple[str, ...]:
        """What is measured by itself."""
        return ("allocate", "commit", "copy", "copy_specs", "free", "lookup", "read", "write")

    def __str__(self) -> str:
        return f"{self.mix} mix, {self.concurrency} lanes"


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignWorkload:
    """Sequences in align mode, by simulated engines."""

    engines: int
    """Engines over all processes, each with a session, a stream and a worker of its own."""
    sequences: int
    """Sequences that an engine runs at a time."""
    shared_blocks: int
    """Blocks of tokens in the system prompts that requests share."""
    prompt_tokens: int
    """Tokens of a request's own that follow, on average."""
    output_tokens: int
    """Tokens that a request generates, on average."""
    name: str = "align"
    """Tells the workloads apart in JSON."""

    @property
    def callers(self) -> int:
        """Engines over all processes."""
        return self.engines

    @property
    def operations(self) -> tuple[str, ...]:
        """What is measured by itself."""
        steps = ("step_admissions", "step_copies", "step_quiet", "step_refused")
        return ("first_token", "open", "read", *steps, "write")

    def __str__(self) -> str:
        return f"align mode, {self.engines} engines of {self.sequences} sequences"


Workload: TypeAlias = BlocksWorkload | AlignWorkload

SLICE_SECONDS = 1.0
"""Length of a slice of a load test that is not too long or short for it."""
MOST_SLICES = 120
"""An open histogram takes 150 KiB, and a report has one of each operation in each slice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """One load test."""

    target: str
    """Where the server listens."""
    duration: float
    """Seconds that are measured."""
    warmup: float
    """Seconds before that, not measured."""
    workload: Workload
    """What to send."""
    rate: float
    """Operations or requests per second over all callers (open loop); 0: the next as one has ended (closed loop)."""
    processes: int
    """Client processes."""
    verify: float
    """Share of state cycles or requests whose bytes are written, read back and compared, 0 to 1."""
    seed: int
    """Seed of everything random but `namespace`."""
    namespace: str = field(default_factory=lambda: f"loadtest.{secrets.token_hex(8)}")
    """Namespace of the run's prefix hashes, so that a run does not find what another has left in the pool."""
    tls: Tls | None = None
    """TLS; None: plain text."""
    token_file: str = ""
    """File with a bearer token, which is read by each process; empty: there is none."""

    @property
    def slices(self) -> int:
        """Slices of the time that is measured, all of the same length."""
        return min(MOST_SLICES, max(1, round(self.duration / SLICE_SECONDS)))

    @property
    def slice_seconds(self) -> float:
        """Length of a slice."""
        return self.duration / self.slices

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "LoadOptions":
        """Reads what `dataclasses.asdict` and `json` have written; a report's has no files of the connection."""
        kind = {"blocks": BlocksWorkload, "align": AlignWorkload}[values["workload"]["name"]]
        tls = Tls(**values["tls"]) if values.get("tls") else None
        return cls(**{**values, "workload": kind(**values["workload"]), "tls": tls})
