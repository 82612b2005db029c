"""The numbers of a server at a moment, in the data model of Prometheus."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MetricSample:
    """One number."""

    name: str
    """Its name, such as ``statepool_blocks``; counters end with ``_total``."""
    labels: Mapping[str, str]
    """Its labels."""
    value: float
    """Its value."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """All numbers of a server at a moment."""

    incarnation: int
    """The server process: with another one, counters begin anew."""
    samples: tuple[MetricSample, ...]
    """The numbers."""

    def total(self, name: str, **labels: str) -> float:
        """Sums the samples of a name that have these labels; 0 where there are none."""
        return sum(sample.value for sample in self._matching(name, labels))

    def by(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """Sums the samples of a name that have these labels, separately for each value of another label."""
        sums: dict[str, float] = {}
        for sample in self._matching(name, labels):
            key = sample.labels.get(label, "")
            sums[key] = sums.get(key, 0.0) + sample.value
        return sums

    def _matching(self, name: str, labels: Mapping[str, str]) -> Iterator[MetricSample]:
        for sample in self.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                yield sample
