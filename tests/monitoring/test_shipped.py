"""Guarantee: the alert rules and the dashboard ask for series that the server has, with labels that these have."""

import json
import re

import pytest

from monitoring.shipped import DASHBOARD, names_of, panel_queries, rule_queries
from statepool_server.metrics.catalogue import CATALOGUE
from statepool_server.metrics.metric import Counter, Distribution, Gauge

SCRAPED = {"instance", "job", "le"}
"""Labels that do not come from the server's catalogue."""


def series() -> dict[str, set[str]]:
    """Lists every series of the server with its labels."""
    suffixes = {Gauge: ("",), Counter: ("_total",), Distribution: ("_bucket", "_sum", "_count")}
    return {
        f"{metric.name}{suffix}": {*metric.labels, *SCRAPED}
        for metric in CATALOGUE
        for suffix in suffixes[type(metric)]
    }


@pytest.mark.parametrize("query", [*rule_queries(), *panel_queries()])
def test_queries(query: str) -> None:
    """A query reads series that exist, and names labels that they have."""
    known, names = series(), names_of(query)
    asked = set(re.findall(r"(\w+)=~?\"", query))
    for group in re.findall(r"by \(([^)]*)\)", query):
        asked |= set(re.split(r",\s*", group))

    assert names <= known.keys()
    assert all(asked <= known[name] for name in names)


def test_panels() -> None:
    """No two panels have one id, and they fill the dashboard without overlaps."""
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}

    assert len({panel["id"] for panel in panels}) == len(places) == len(panels)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)
