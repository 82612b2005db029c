"""Guarantee: a browser shows the status page, with moving numbers, and reports of load tests, without complaint."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.scraping import FLAGS, address
from service.servers import DEADLINE_SECONDS, Server, Servers

CHROMIUM = shutil.which("chromium-headless-shell") or shutil.which("chromium")
VIRTUAL_MS = 600_000
"""Time as the page sees it: the browser does not wait for timers, only for answers."""

if not CHROMIUM:
    assert "STATEPOOL_NEEDS_CHROMIUM" not in os.environ, "chromium is not installed"
    pytest.skip("chromium is not installed; `make page` needs it", allow_module_level=True)


@pytest.fixture
def server(servers: Servers) -> Server:
    """Gives a server with an HTTP listener and room for a load test."""
    return servers.shared(*FLAGS, "--blocks", "65", "--num-spec", "2")


@pytest.fixture
def load(server: Server) -> Iterator[None]:
    """Runs engines meanwhile."""
    command = [str(Path(sys.executable).with_name("statepool")), "loadtest", "--target", server.target]
    with subprocess.Popen([*command, "--duration", "60s", "--engines", "1"], stdout=subprocess.DEVNULL) as process:
        yield
        process.terminate()


def browse(server: Server, *flags: str) -> "subprocess.CompletedProcess[str]":
    """Opens the status page."""
    return open_in_browser(f"{address(server)}/", *flags)


def open_in_browser(url: str, *flags: str) -> "subprocess.CompletedProcess[str]":
    """Opens a page, and lets some of its time pass."""
    return subprocess.run(
        [
            str(CHROMIUM),
            *("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"),
            *(f"--virtual-time-budget={VIRTUAL_MS}", *flags, url),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=2 * DEADLINE_SECONDS,
    )


def text_of(page: str, element: str) -> str:
    """Finds the text of an element."""
    found = re.search(rf'id="{element}"[^>]*>([^<]*)<', page)
    assert found is not None
    return found[1]


@pytest.mark.usefixtures("load")
def test_page(server: Server) -> None:
    """Curves have points, figures are there, the legend adds up, and the console is silent."""
    answer = browse(server, "--dump-dom")

    page = answer.stdout
    assert int(re.findall(r'data-looks="(\d+)"', page)[0]) >= 2
    assert text_of(page, "state") == "serving"
    assert "64 blocks" in text_of(page, "model")
    assert re.fullmatch(r"[\d,]+\.\d / s", text_of(page, "step-rate"))
    assert re.fullmatch(r"[\d.,]+ (µs|ms|s) p50 · [\d.,]+ (µs|ms|s) p99", text_of(page, "latency"))
    legend = page.partition('id="legend">')[2].partition("</ul>")[0]
    assert sum(int(count) for count in re.findall(r"(\d+)</li>", legend)) == 64
    assert [line for line in answer.stderr.splitlines() if "CONSOLE" in line] == []


def test_draining(servers: Servers) -> None:
    """A server that drains says so."""
    server = servers.start(*FLAGS).wait_until_ready()
    page = browse(server, "--dump-dom").stdout
    assert text_of(page, "state") == "serving"
    with server.client() as client:
        client.drain(0.0)

    assert text_of(browse(server, "--dump-dom").stdout, "state") == "draining"


@pytest.mark.parametrize("workload", ["align", "blocks"])
def test_load_report(server: Server, tmp_path: Path, workload: str) -> None:
    """A browser draws a load test's report without a complaint, and prints it on a few pages."""
    report, printed = tmp_path / "report.html", tmp_path / "report.pdf"
    command = [str(Path(sys.executable).with_name("statepool")), "loadtest", "--target", server.target]
    subprocess.run(
        [*command, "--workload", workload, "--duration", "2s", "--report", str(report)],
        stdout=subprocess.DEVNULL,
        check=True,
        timeout=DEADLINE_SECONDS,
    )

    answer = open_in_browser(report.as_uri(), "--dump-dom")
    open_in_browser(report.as_uri(), f"--print-to-pdf={printed}")

    assert text_of(answer.stdout, "verdict") == "passed"
    assert answer.stdout.count("<svg") >= 6
    assert [line for line in answer.stderr.splitlines() if "CONSOLE" in line] == []
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", printed.read_bytes())) <= 8
