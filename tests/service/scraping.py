"""What a scraper sees of a server: its metrics over HTTP, as a mapping."""

import json
import urllib.request
from collections.abc import Mapping
from http.client import HTTPResponse
from typing import TypeAlias

from prometheus_client.parser import text_string_to_metric_families

from service.servers import Server

Samples: TypeAlias = Mapping[str, float]
"""Values by name and labels: ``statepool_blocks{state=free}``, labels in the order of their names."""

FLAGS = ("--metrics-listen", "127.0.0.1:0")
"""Flags of a server with an HTTP listener."""


def address(server: Server) -> str:
    """Finds where a server that is ready listens for HTTP."""
    lines = (json.loads(line) for line in server.log.splitlines() if line.startswith("{"))
    ports = [line["metrics_port"] for line in lines if line.get("event") == "serving"]
    return f"http://127.0.0.1:{ports[-1]}"


def get(server: Server, path: str, accept: str = "*/*") -> HTTPResponse:
    """Gets a page, which must be there."""
    request = urllib.request.Request(address(server) + path, headers={"Accept": accept})  # noqa: S310
    response: HTTPResponse = urllib.request.urlopen(request, timeout=30)  # noqa: S310 — an address of our own
    return response


def scrape(server: Server) -> dict[str, float]:
    """Reads every sample."""
    with get(server, "/metrics") as response:
        text = response.read().decode()
    return {
        _key(sample.name, sample.labels): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def _key(name: str, labels: Mapping[str, str]) -> str:
    inner = ",".join(f"{label}={value}" for label, value in sorted(labels.items()))
    return f"{name}{{{inner}}}" if inner else name


def moved(before: Samples, after: Samples) -> dict[str, float]:
    """Lists by how much samples have changed, those left out that have not."""
    return {key: value - before.get(key, 0.0) for key, value in after.items() if value != before.get(key, 0.0)}
