"""A load test's results as one HTML page that loads nothing: styles and drawings are in it, and there is no script."""

from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from importlib.resources import files
from xml.etree import ElementTree as ET

from statepool.loadtest.charts import latency, rates
from statepool.loadtest.charts.chart import Chart
from statepool.loadtest.distribution import bucket_counts
from statepool.loadtest.facts import describe
from statepool.loadtest.report import PERCENTILES, Report, latencies, rows
from statepool.loadtest.slices import ALL, Slice
from statepool.loadtest.summary import summary, title
from statepool.units import format_seconds

CURVES = 8
"""Colours of percentile curves beside that of all operations."""


def render(report: Report) -> bytes:
    """Draws the page.

    Args:
        report: The results.

    Returns:
        HTML in UTF-8.
    """
    page = ET.Element("html", lang="en")
    _head(page, f"statepool load test: {title(report)}")
    body = ET.SubElement(page, "body")
    _header(body, report)
    ET.SubElement(body, "main").extend(_sections(report))
    footer = f"Latencies in an open loop count from when a request was due. Drawn by statepool {version('statepool')}."
    ET.SubElement(body, "footer").text = footer
    html: bytes = ET.tostring(page, encoding="utf-8", method="html")
    return b"<!doctype html>\n" + html


def _head(page: ET.Element, text: str) -> None:
    head = ET.SubElement(page, "head")
    ET.SubElement(head, "meta", charset="utf-8")
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    ET.SubElement(head, "meta", {"http-equiv": "Content-Security-Policy", "content": policy})
    ET.SubElement(head, "meta", name="viewport", content="width=device-width, initial-scale=1")
    ET.SubElement(head, "title").text = text
    style = (files(__package__) / "page.css").read_text(encoding="utf-8")
    ET.SubElement(head, "style").text = style


def _header(body: ET.Element, report: Report) -> None:
    header, passed = ET.SubElement(body, "header"), all(verdict.holds for verdict in report.verdicts)
    ET.SubElement(header, "h1").text = title(report)
    verdict = ET.SubElement(header, "strong", {"class": "good" if passed else "bad", "id": "verdict"})
    verdict.text = "passed" if passed else "failed"
    ET.SubElement(header, "p").text = f"{report.started:%Y-%m-%d %H:%M:%S} UTC"


def _sections(report: Report) -> Iterator[ET.Element]:
    total, slices, seconds = report.total(), report.slices, report.options.slice_seconds
    if report.probes:
        yield _section("Search for the highest rate", _probes(report), _drawn(report))
    yield _section("Thresholds", _verdicts(report))
    yield _section("Operations", _operations(report, total))
    if total.operations:
        yield _percentiles(total)
        yield _section("Operations by latency over time", latency.heat_map(slices, seconds).element())
        yield _half("Throughput, operations per second", rates.throughput(slices, seconds))
        yield _half("Latency", latency.latency_over_time(slices, ALL, seconds), latency.SHARES)
    if report.usage:
        yield _half("Blocks of the pool", rates.usage(report.usage, slices, seconds), rates.USAGE)
    if total.errors:
        yield _half("Errors", rates.errors(slices, seconds))
    for operation in sorted(total.histograms):
        yield _half(f"Latency of {operation}", latency.latency_over_time(slices, operation, seconds), latency.SHARES)
    yield _section("Results", _lines(summary(report)))
    for subject, facts in describe(report.options, report.facts):
        yield _section(subject, _table([], facts), is_wide=False)


def _percentiles(total: Slice) -> ET.Element:
    kinds = {name: f"curve-{number % CURVES}" for number, name in enumerate(sorted(total.histograms))} | {ALL: "all"}
    curves = {kind: bucket_counts(total.latencies(name)) for name, kind in kinds.items()}
    return _section("Latency by percentile", _legend(kinds.items()), latency.percentile_curves(curves).element())


def _verdicts(report: Report) -> ET.Element:
    verdicts = [(each.text, each.measured, "holds" if each.holds else "missed") for each in report.verdicts]
    table = _table(["what must hold", "measured", ""], verdicts)
    for row, each in zip(table.findall("tr")[1:], report.verdicts, strict=True):
        row[-1].set("class", "good" if each.holds else "bad")
    return table


def _operations(report: Report, total: Slice) -> ET.Element:
    titles = ["operation", "count", "per second", *(f"p{percentile:g}" for percentile in PERCENTILES), "max"]
    return _table(titles, (_operation(name, latencies(each, report.options.duration)) for name, each in rows(total)))


def _operation(name: str, row: dict[str, float]) -> tuple[str, ...]:
    times = [format_seconds(row[f"{which}_us"] / 1e6) for which in (*(f"p{p:g}" for p in PERCENTILES), "max")]
    return (name, f"{row['count']:,}", f"{row['per_second']:,.1f}", *times)


def _drawn(report: Report) -> ET.Element:
    offered = [probe for probe in report.probes if probe.rate]
    return rates.probes(offered).element() if offered else ET.Element("div")


def _probes(report: Report) -> ET.Element:
    return _table(["offered per second", "served per second", ""], (probe.row() for probe in report.probes))


def _half(heading: str, chart: Chart, legend: Iterable[str] = ()) -> ET.Element:
    names = list(legend)
    return _section(heading, _legend(zip(names, names, strict=True)), chart.element(), is_wide=False)


def _section(heading: str, *content: ET.Element, is_wide: bool = True) -> ET.Element:
    section = ET.Element("section", {"class": "wide"} if is_wide else {})
    ET.SubElement(section, "h2").text = heading
    section.extend(content)
    return section


def _legend(kinds: Iterable[tuple[str, str]]) -> ET.Element:
    legend = ET.Element("ul")
    for name, kind in kinds:
        ET.SubElement(legend, "li", {"class": kind}).text = name
    return legend


def _lines(lines: Iterable[str]) -> ET.Element:
    return _table([], ((line[:10].strip(), line[10:]) for line in lines))


def _table(titles: Sequence[str], body: Iterable[Sequence[str]]) -> ET.Element:
    table = ET.Element("table")
    for tag, cells in [("th", titles)] * bool(titles) + [("td", cells) for cells in body]:
        row = ET.SubElement(table, "tr")
        for text in cells:
            ET.SubElement(row, tag).text = text
    return table
