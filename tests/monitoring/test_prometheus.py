"""Guarantee: a real Prometheus scrapes the server, takes the rules, and has data for every panel of the dashboard."""

import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from monitoring.shipped import MONITORING, RULES, panel_queries
from service.scraping import FLAGS, address, get
from service.servers import DEADLINE_SECONDS, Server, Servers, until

PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")
SELDOM = ("statepool_refusals_total", "statepool_ended_sessions_total")
"""Series that a load test without a fault need not have."""

if not (PROMETHEUS and PROMTOOL):
    assert "STATEPOOL_NEEDS_PROMETHEUS" not in os.environ, "prometheus and promtool are not installed"
    pytest.skip("prometheus and promtool are not installed; `make prometheus` needs them", allow_module_level=True)


class Prometheus:
    """A Prometheus that scrapes one server every second.

    Attributes:
        url: Where it answers.
    """

    def __init__(self, folder: Path, server: Server) -> None:
        """Starts it with the configuration that ships, pointed at the server."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            place = f"127.0.0.1:{free.getsockname()[1]}"
        config = (MONITORING / "prometheus.yaml").read_text(encoding="utf-8")
        config = config.replace("scrape_interval: 5s", "scrape_interval: 1s").replace("15s", "1s")
        config = config.replace("127.0.0.1:9464", address(server).removeprefix("http://"))
        (folder / "prometheus.yaml").write_text(config, encoding="utf-8")
        (folder / RULES.name).write_bytes(RULES.read_bytes())
        self.url = f"http://{place}"
        self.process = subprocess.Popen(
            [
                str(PROMETHEUS),
                f"--config.file={folder / 'prometheus.yaml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={place}",
                "--log.level=warn",
            ]
        )

    def ask(self, path: str, **query: str) -> Any:
        """Asks its API."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 — an address of our own
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[Any]:
        """Evaluates an expression now."""
        return list(self.ask("query", query=expression)["result"])

    def is_ready(self) -> bool:
        """Tells whether it answers."""
        assert self.process.poll() is None
        try:
            return bool(self.query("vector(1)"))
        except OSError:
            return False


@pytest.fixture(scope="module")
def server(servers: Servers) -> Server:
    """Gives a server with room for a load test."""
    return servers.shared(*FLAGS, "--blocks", "65", "--num-spec", "2")


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Iterator[Prometheus]:
    """Starts a Prometheus."""
    started = Prometheus(tmp_path_factory.mktemp("prometheus"), server)
    try:
        until(started.is_ready, "prometheus")
        yield started
    finally:
        started.process.terminate()
        started.process.wait(DEADLINE_SECONDS)


def test_exposition(server: Server) -> None:
    """Promtool finds nothing to complain of in the names and texts of the server's own metrics."""
    for accept in ("text/plain", "application/openmetrics-text; version=1.0.0"):
        with get(server, "/metrics", accept) as response:
            told = response.read().decode()
        assert response.headers["Content-Type"].startswith(accept.partition(";")[0])
    with get(server, "/metrics") as response:
        told = response.read().decode()
    answer = subprocess.run(
        [str(PROMTOOL), "check", "metrics"], input=told, capture_output=True, text=True, check=False
    )

    complaints = [line for line in (answer.stdout + answer.stderr).splitlines() if not line.startswith("python_")]
    assert complaints == []


def test_rules() -> None:
    """Promtool takes the rules, and every alert fires for what it is meant for, and for nothing else."""
    for arguments in (("check", "rules", str(RULES)), ("test", "rules", "rules_test.yaml")):
        answer = subprocess.run(
            [str(PROMTOOL), *arguments], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
        )
        assert answer.returncode == 0, answer.stdout + answer.stderr


def test_scrape(prometheus: Prometheus, server: Server) -> None:
    """Prometheus scrapes without an error, evaluates every rule, and every panel has data while engines run."""
    command = [str(Path(sys.executable).with_name("statepool")), "loadtest", "--target", server.target]
    load = subprocess.Popen(
        [*command, "--duration", "8s", "--engines", "1", "--sequences", "4"], stdout=subprocess.DEVNULL
    )
    try:
        until(lambda: bool(prometheus.query("rate(statepool_steps_total[10s]) > 0")), "steps to be seen")
        empty = [query for query in panel_queries() if not prometheus.query(query)]
    finally:
        assert load.wait(DEADLINE_SECONDS) == 0

    assert [query for query in empty if not any(name in query for name in SELDOM)] == []
    (target,) = prometheus.ask("targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    until(lambda: {rule["health"] for rule in rules(prometheus)} == {"ok"}, "the rules to be evaluated")
    assert [rule["name"] for rule in rules(prometheus) if rule.get("state") == "firing"] == []


def rules(prometheus: Prometheus) -> list[Any]:
    """Lists the rules with their states."""
    return [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
