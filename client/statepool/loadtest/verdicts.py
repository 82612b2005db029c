"""Whether a load test did what it had to, and what a search for the highest rate has tried."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether something holds that must."""

    text: str
    """What must hold."""
    measured: str
    """What was measured."""
    holds: bool
    """Whether it does."""

    def __str__(self) -> str:
        return f"{self.text}: {self.measured}"


@dataclass(frozen=True, slots=True)
class Probe:
    """A rate that a search has tried."""

    rate: float
    """Operations or requests per second that were offered; 0: a closed loop, which only tells where to begin."""
    served: float
    """How many of them per second were not left waiting at the end."""
    verdicts: tuple[Verdict, ...]
    """What had to hold."""
    is_confirmation: bool = False
    """Whether the rate had held before."""

    @property
    def holds(self) -> bool:
        """Whether the rate can be sustained."""
        return all(verdict.holds for verdict in self.verdicts)

    def row(self) -> tuple[str, str, str]:
        """Writes what was offered, what was served per second, and whether it holds or why not."""
        if not self.rate:
            return "closed loop", f"{self.served:.1f}", "tells where to begin"
        missed = "; ".join(str(verdict) for verdict in self.verdicts if not verdict.holds)
        held = "confirmed" if self.is_confirmation else "holds"
        return f"{self.rate:.1f}", f"{self.served:.1f}", missed or held
