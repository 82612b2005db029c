"""Guarantee: charts show what was measured: every value in its place, nothing lost, and the axes say where."""

import re
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from statepool.loadtest.charts.chart import BOTTOM, LEFT, RIGHT, TOP, WIDE, Chart
from statepool.loadtest.charts.latency import heat_map, latency_over_time, percentile_curves
from statepool.loadtest.charts.rates import amount, throughput
from statepool.loadtest.charts.scales import linear, logarithmic, percentiles
from statepool.loadtest.distribution import bucket_counts, bucket_values, quantiles
from statepool.loadtest.slices import LOWEST_NS, Slice, new_histogram

MILLISECOND = 10**6


def slices_of(*latencies: list[int]) -> list[Slice]:
    """Makes a slice of each list of milliseconds."""
    made = []
    for values in latencies:
        each = Slice()
        for value in values:
            each.histogram("step").record_value(value * MILLISECOND)
        made.append(each)
    return made


def texts(drawing: ET.Element) -> list[str]:
    """Lists what is written on the axes."""
    return [text.text or "" for text in drawing.iter("text")]


def paths(drawing: ET.Element, kind: str) -> list[str]:
    """Lists the paths of a class."""
    return [path.get("d", "") for path in drawing.iter("path") if kind in path.get("class", "").split()]


def points(path: str) -> list[tuple[float, float]]:
    """Reads the points of a line."""
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path)]


@pytest.mark.parametrize(("high", "last"), [(0.0, 1.0), (7.0, 6.0), (10.0, 10.0), (1234.0, 1000.0), (0.03, 0.03)])
def test_linear_ticks_are_round(high: float, last: float) -> None:
    """Ticks begin with 0 and are few and round."""
    ticks = [value for value, _ in linear(high, str).ticks]

    assert ticks[0] == 0
    assert ticks[-1] == pytest.approx(last)
    assert 2 <= len(ticks) <= 7
    assert np.ptp(np.diff(ticks)) == pytest.approx(0)


def test_logarithmic_ticks() -> None:
    """Powers of ten take the same room, with 2 and 5 between them where there are few."""
    few, many = logarithmic(0.001, 0.1, str), logarithmic(1e-6, 100.0, str)

    assert few.place(np.array([0.001, 0.01, 0.1])) == pytest.approx([0, 0.5, 1])
    assert [value for value, _ in few.ticks] == pytest.approx([0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1])
    assert len(many.ticks) == 9


def test_every_nine_takes_the_same_room() -> None:
    """The axis of percentiles is that of HdrHistogram's plots."""
    scale = percentiles(0.9999)

    assert scale.place(np.array([0.0, 0.9, 0.99, 0.999, 0.9999])) == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert [text for _, text in scale.ticks] == ["0%", "50%", "90%", "99%", "99.9%", "99.99%"]


def test_quantiles_are_those_of_the_histogram() -> None:
    """Columns and library agree at every percentile, and no value is lost."""
    histogram = new_histogram()
    for value in np.random.default_rng(0).lognormal(14.0, 1.5, 5000):
        histogram.record_value(int(value))
    counts = bucket_counts(histogram)

    assert counts.sum() == 5000
    for share in (0.0, 0.5, 0.9, 0.99, 0.999, 1.0):
        expected = histogram.get_value_at_percentile(share * 100)
        assert abs(int(quantiles(counts, np.array([share]))[0]) - expected) <= max(LOWEST_NS, expected / 1000)
    assert (np.diff(bucket_values()) > 0).all()


def test_a_percentile_curve_ends_with_the_largest_value() -> None:
    """The curve begins left with the smallest latency, and ends at the top with the largest one."""
    (each,) = slices_of([1, *[10] * 98, 100])

    (line,) = paths(percentile_curves({"curve-0": bucket_counts(each.latencies())}).element(), "curve-0")

    drawn = points(line)
    assert drawn[0][0] == LEFT
    assert drawn[-1][0] == pytest.approx(WIDE - RIGHT, abs=0.2)
    assert min(y for _, y in drawn) == drawn[-1][1] < drawn[len(drawn) // 2][1] < drawn[0][1]


def test_a_slice_without_operations_interrupts_the_line() -> None:
    """Where nothing was measured nothing is drawn, neither a 0 nor a way between the neighbours."""
    drawing = latency_over_time(slices_of([1], [], [1], [2]), "step", 1.0).element()

    (line,) = paths(drawing, "p50")
    assert re.sub(r"[\d. ]", "", line) == "MML"


def test_a_heat_map_has_every_operation() -> None:
    """Each column has a cell for each latency of its slice; many slices share a column."""
    drawing = heat_map(slices_of([1, 100], [10], []), 1.0).element()
    assert sum(path.count("M") for path in paths(drawing, "heat")) == 3

    crowded = heat_map(slices_of(*[[1, 100]] * 600), 1.0).element()
    assert sum(path.count("M") for path in paths(crowded, "heat")) == 2 * 150


def test_marks_lie_within_the_axes() -> None:
    """Whatever is drawn of a run whose numbers vary a lot stays within the axes."""
    slices = slices_of([1], [50, 100, 4000], [1] * 50)
    for chart in (heat_map(slices, 0.5), latency_over_time(slices, "all", 0.5), throughput(slices, 0.5)):
        drawing = chart.element()
        numbers = [points(path) for kind in ("line", "heat") for path in paths(drawing, kind)]
        for x, y in (point for path in numbers for point in path):
            assert LEFT - 0.1 <= x <= chart.width - RIGHT + 0.1
            assert TOP - 0.1 <= y <= chart.height - BOTTOM + 0.1


def test_areas_lie_on_each_other() -> None:
    """The second area begins where the first one ends."""
    chart = Chart("areas", linear(1.0, str), linear(4.0, str))
    chart.stack(["one", "two"], np.array([0.0, 1.0]), np.array([[1.0, 1.0], [3.0, 3.0]]))
    drawing = chart.element()

    (one,), (two,) = paths(drawing, "one"), paths(drawing, "two")
    assert points(one)[:2] == points(two)[:1:-1]
    assert {y for _, y in points(two)[:2]} == {TOP}


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (999, "999"), (1234, "1.23k"), (2.5e6, "2.5M"), (0.125, "0.125")]
)
def test_amounts(value: float, text: str) -> None:
    """Numbers have three digits."""
    assert amount(value) == text
    assert text in texts(Chart("one", linear(1, str), linear(value * 1.0 or 1.0, lambda _: text)).element())
