"""All metrics at a moment: as samples, and in the text formats of Prometheus."""

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from statepool_server.metrics.catalogue import CATALOGUE
from statepool_server.metrics.metric import Sources


class Exposition(Collector):
    """Reads the catalogue, and what the process costs, when asked; on the event loop, where nothing moves meanwhile."""

    def __init__(self, sources: Sources) -> None:
        """Begins.

        Args:
            sources: Where numbers are read.
        """
        self._sources = sources
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def describe(self) -> Iterable[Family]:
        """Tells no names before they are collected; called when it is registered."""
        return ()

    def collect(self) -> Iterator[Family]:
        """Reads every metric of the catalogue."""
        for metric in CATALOGUE:
            yield metric.family(self._sources)

    def samples(self) -> Iterator[Sample]:
        """Reads every sample."""
        for family in self._registry.collect():
            yield from family.samples

    def text(self, accept: str) -> tuple[bytes, str]:
        """Writes every sample in the format that a scraper likes best.

        Args:
            accept: Its Accept header.

        Returns:
            The text and its content type.
        """
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type
