"""Guarantee: a report's page shows everything, loads nothing, runs nothing, and is as small as its charts."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from loadtest.test_report import MILLISECOND, OPTIONS, report_of, served
from statepool.loadtest.facts import Facts
from statepool.loadtest.page import render
from statepool.loadtest.report import Report
from statepool.loadtest.slices import Slice
from statepool.loadtest.thresholds import Threshold, judge
from statepool.loadtest.usage import UsageSample

FACTS: Facts = {"machine": {"processor": "<b>&\"'", "memory_bytes": 2**30}, "pool": {"tp_ranks": [0, 1]}}


class Elements(HTMLParser):
    """Reads a page.

    Attributes:
        tags: Every element.
        attributes: Every attribute and its value.
        text: All text.
    """

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes an element."""
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        """Notes a text."""
        self.text += data


def full() -> Report:
    """Makes a report with something for every section."""
    recorder = served()
    recorder.error("step", ValueError())
    recorder.verify("<script>alert(1)</script>", matches=False)
    report = report_of(recorder)
    report.facts = FACTS
    report.usage = [UsageSample(second + 0.5, 1, 0, 2, 5 - second, 1, 1) for second in range(2)]
    report.verdicts = judge(report, [Threshold.parse("p99<1h"), Threshold.parse("p50<1us")])
    return report


def test_sections() -> None:
    """Thresholds, tables, curves, the heat map, usage, errors, configuration and facts are there, and the verdict."""
    page = Elements(render(full()))

    headings = [
        "Thresholds",
        "Latency by percentile",
        "Operations by latency over time",
        "Throughput",
        "Latency of step",
    ]
    for words in (
        *headings,
        "Blocks of the pool",
        "Errors",
        "Configuration",
        "Machine",
        "Pool",
        "failed",
        "1 x step: ",
    ):
        assert words in page.text
    assert page.tags.count("svg") == 8
    assert re.search(r"p50<1us\s*3ms\s*missed", page.text)
    assert re.search(r"p99<1h\s*3ms\s*holds", page.text)
    assert "1GiB" in page.text
    assert "0, 1" in page.text


def test_nothing_is_loaded_and_nothing_runs() -> None:
    """There is no script, no link, no image, no address; what others have written is text."""
    page = render(full())
    elements = Elements(page)

    assert {"script", "link", "img", "iframe", "object", "base", "a", "b"}.isdisjoint(elements.tags)
    assert {"src", "href", "srcset", "action", "style"}.isdisjoint(name for name, _ in elements.attributes)
    assert not re.search(rb"https?://|url\(|@import", page)
    assert "<script>alert(1)</script>" in elements.text
    assert "<b>&\"'" in elements.text


def test_a_report_of_nothing() -> None:
    """Where nothing was measured, the page says so."""
    report = Report(OPTIONS)
    report.verdicts = judge(report, [])

    page = Elements(render(report))

    assert "nothing was measured" in page.text
    assert "svg" not in page.tags


@pytest.mark.parametrize("latency_ms", [0, 10**9])
def test_latencies_beyond_what_is_measured(latency_ms: int) -> None:
    """Latencies below and above a histogram's range are drawn at its ends."""
    recorder = served()
    recorder.latency("step_quiet", latency_ms * MILLISECOND)

    assert render(report_of(recorder)).count(b"NaN") == 0


def test_a_long_run_stays_small() -> None:
    """Ten minutes of eight operations make a page of less than two megabytes."""
    report = report_of(served())
    report.options = replace(OPTIONS, duration=600.0)
    for number in range(report.options.slices):
        each = Slice()
        for kind in range(8):
            for value in range(1, 40):
                each.histogram(f"step_{kind}").record_value(value * (1 + number % 7) * MILLISECOND)
        report.slices.append(each)

    assert len(render(report)) < 2 * 2**20
