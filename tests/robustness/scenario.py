"""What a run is: everything that its seed decides before it begins."""

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from service.servers import BLOCK_TOKENS, custom_model
from statepool.sequences import Execution

NUM_SPEC = 2
RANKS = 2
NAMESPACE = "robustness"
OWNER_STATE = "owner"
"""An opaque state of every block, in which a worker leaves its mark while it writes."""
OWNER_BYTES = 16
ROOMY_BLOCKS, TIGHT_BLOCKS = 16384, 72
RECOVERY_SHARE = 0.85
"""Share of the seeds whose servers keep a journal."""
LEAST_JOURNAL_MIB = 5
ALONE_SHARE = 0.25
"""Share of the seeds whose runs are followed by a twin."""
CROWDING = frozenset({"usurp_scheduler", "kill_worker", "stop_worker", "lie", "tear_journal"})
"""Faults after which a twin cannot know what happened: somebody else did something, or something was forgotten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One run."""

    seed: int
    """Decides everything random but what races decide."""
    seconds: float
    """How long traffic and faults go on."""
    faults: tuple[str, ...]
    """Names of the faults that may strike."""
    schedulers: int
    """Scheduler processes, each with a session."""
    workers_per_rank: int
    """Worker processes attached to each rank."""
    blocks: int
    """Blocks of the pool, the null block included."""
    ttl: float
    """Time to live of the sessions, in seconds."""
    sequences: int
    """Sequences that a scheduler runs at a time."""
    execution: Execution
    """Who runs the copies of the steps."""
    take_over: bool
    """Whether a scheduler that is started again takes over the session of the one before."""
    resumes: bool
    """Whether a session goes on at a server that continues the one before."""
    recovers: bool
    """Whether a server that is started again goes on where the one before has ended."""
    journal_mib: int
    """Size of a file of its journal, in MiB; the least makes it begin new ones all the time."""

    @property
    def is_alone(self) -> bool:
        """Whether one scheduler at a time does all that is done to the pool, so that the order of it is known."""
        return self.schedulers == 1 and self.workers_per_rank == 0

    @property
    def is_roomy(self) -> bool:
        """Whether no block is ever evicted for want of blank ones, so that what was committed must be found."""
        return self.blocks == ROOMY_BLOCKS

    @property
    def server_flags(self) -> tuple[str, ...]:
        """Flags of the server, beside those that all test servers have."""
        return (
            *("--blocks", str(self.blocks), "--num-spec", str(NUM_SPEC)),
            *("--stall-timeout", "2s", "--drain-timeout", "1s", "--max-message-bytes", "256KiB"),
            *("--recovery" if self.recovers else "--no-recovery", ""),
            *("--recovery-grace", f"{round(self.ttl * 1000)}ms", "--journal-bytes", f"{self.journal_mib}MiB"),
        )

    def to_json(self) -> str:
        """Writes it for another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Scenario":
        """Reads what `to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        return cls(**{**values, "faults": tuple(values["faults"]), "execution": Execution(values["execution"])})


def draw(seed: int, seconds: float, faults: Sequence[str]) -> Scenario:
    """Draws a scenario.

    Args:
        seed: The same seed draws the same scenario.
        seconds: How long it goes on.
        faults: What may strike.
    """
    dice = random.Random(seed)
    scenario = Scenario(
        seed=seed,
        seconds=seconds,
        faults=tuple(faults),
        schedulers=dice.randint(2, 3),
        workers_per_rank=dice.randint(1, 2),
        blocks=dice.choice([ROOMY_BLOCKS, TIGHT_BLOCKS]),
        ttl=dice.uniform(1.0, 3.0),
        sequences=dice.randint(3, 6),
        execution=dice.choice(list(Execution)),
        take_over=dice.random() < 0.5,
        resumes=dice.random() < 0.5,
        recovers=dice.random() < RECOVERY_SHARE,
        journal_mib=dice.choice([LEAST_JOURNAL_MIB, 64]),
    )
    return alone(scenario) if dice.random() < ALONE_SHARE else scenario


def alone(scenario: Scenario) -> Scenario:
    """Leaves one scheduler, whose successors take its session over, and the faults that add nothing to what is done."""
    return replace(
        scenario,
        faults=tuple(fault for fault in scenario.faults if fault not in CROWDING) or ("calm",),
        schedulers=1,
        workers_per_rank=0,
        ttl=60.0,
        execution=Execution.SERVER,
        take_over=True,
    )


def write_model(folder: Path) -> Path:
    """Writes the model of the runs: that of all test servers, and a state in which workers leave their marks."""
    model = custom_model()
    states = model["states"]
    assert isinstance(states, list)
    owner = {"name": OWNER_STATE, "layer": 0, "kind": "opaque", "shape": [OWNER_BYTES], "dtype": "uint8"}
    model["states"] = [owner, *states]
    path = folder / "model.json"
    path.write_text(json.dumps(model), encoding="utf-8")
    return path


__all__ = ["BLOCK_TOKENS", "NAMESPACE", "NUM_SPEC", "OWNER_STATE", "RANKS", "Scenario", "draw", "write_model"]
