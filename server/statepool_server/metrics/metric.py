"""A metric: its name, what it means, and how it is read where the number is; nothing is kept here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family

from statepool_server.histogram import Histogram
from statepool_server.service.calls import Calls
from statepool_server.service.core import Core
from statepool_server.service.draining import Drain
from statepool_server.service.health import Health
from statepool_server.service.heartbeat import Heartbeat
from statepool_server.service.path_choice import PathChoice
from statepool_server.service.steps import Steps
from statepool_server.service.supervision import Supervisor
from statepool_server.service.watchers import Watchers

Labels: TypeAlias = tuple[str, ...]
"""Values of a metric's labels, in their order."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Where numbers are read."""

    core: Core
    """What the services share."""
    calls: Calls
    """Calls answered."""
    steps: Steps
    """Engine steps."""
    watchers: Watchers
    """Open WatchBlocks streams."""
    health: Health
    """Readiness."""
    supervisor: Supervisor
    """Background parts."""
    heartbeat: Heartbeat
    """The event loop."""
    drain: Drain
    """The way down."""
    paths: PathChoice
    """Ways of received states."""


V = TypeVar("V", float, Histogram)


@dataclass(frozen=True, slots=True)
class Metric(Generic[V]):
    """What all kinds have."""

    name: str
    """Its name, without the suffix ``_total`` of counters; ends with its unit."""
    unit: str
    """What is counted or measured; empty: a yes or no."""
    help: str
    """What it means, in a sentence."""
    read: Callable[[Sources], Mapping[Labels, V]]
    """Reads a value per combination of labels."""
    labels: Labels = ()
    """Names of its labels."""


class Gauge(Metric[float]):
    """A number of the moment."""

    def family(self, sources: Sources) -> Family:
        """Reads all its samples."""
        family = GaugeMetricFamily(self.name, self.help, labels=self.labels, unit=self.unit)
        for labels, value in self.read(sources).items():
            family.add_metric(labels, value)
        return family


class Counter(Metric[float]):
    """A number that only grows while the process lives."""

    def family(self, sources: Sources) -> Family:
        """Reads all its samples."""
        family = CounterMetricFamily(self.name, self.help, labels=self.labels, unit=self.unit)
        for labels, value in self.read(sources).items():
            family.add_metric(labels, value)
        return family


class Distribution(Metric[Histogram]):
    """How values are spread."""

    def family(self, sources: Sources) -> Family:
        """Reads all its samples."""
        family = HistogramMetricFamily(self.name, self.help, labels=self.labels, unit=self.unit)
        for labels, histogram in self.read(sources).items():
            family.add_metric(labels, _buckets(histogram), histogram.total)
        return family


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    cumulative, buckets = 0, []
    for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        cumulative += count
        buckets.append((f"{bound:g}" if bound < float("inf") else "+Inf", float(cumulative)))
    return buckets
