"""What ships for Prometheus and Grafana, read for tests."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

MONITORING = Path(__file__).parents[2] / "docker" / "monitoring"
RULES = MONITORING / "statepool.rules.yaml"
DASHBOARD = MONITORING / "grafana" / "statepool.json"


def rule_queries() -> Iterator[str]:
    """Yields the query of every rule."""
    for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


def panel_queries() -> Iterator[str]:
    """Yields the query of every line of every panel, with Grafana's variables filled in."""
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        for target in panel["targets"]:
            yield target["expr"].replace("$__rate_interval", "10s").replace("$instance", ".*")


def names_of(query: str) -> set[str]:
    """Finds the series of ours that a query reads."""
    return set(re.findall(r"\b(statepool_[a-z_]+)", query))
