"""Guarantee: a difference is told where there is one, noise where there is none, nothing where runs are not alike."""

from dataclasses import replace

import numpy as np
import pytest

from loadtest.test_report import MILLISECOND, OPTIONS
from statepool.loadtest.compare import Ratio, RatioBound, compare, differences
from statepool.loadtest.report import Report
from statepool.loadtest.slices import Slice

SECONDS = 20
PER_SECOND = 200


def report_of(slowness: float, seed: int, seconds: int = SECONDS, per_second: int = PER_SECOND) -> Report:
    """Makes a run whose latencies are drawn from one distribution, times `slowness`."""
    random, report = np.random.default_rng(seed), Report(replace(OPTIONS, duration=float(seconds)))
    report.facts = {"machine": {"cores": 2}, "pool": {"capacity": 16}, "client": {"statepool": "1"}}
    for _ in range(seconds):
        each = Slice()
        for value in random.lognormal(1.0, 0.3, random.poisson(per_second / slowness)):
            each.histogram("step").record_value(int(value * slowness * MILLISECOND))
        report.slices.append(each)
    return report


def find(ratios: list[Ratio], measure: str) -> Ratio:
    """Finds a measure of all operations."""
    return next(each for each in ratios if (each.operation, each.measure) == ("all", measure))


def test_a_difference_is_told() -> None:
    """A run half as fast is worse in every measure, and the true ratio lies in most of the intervals."""
    ratios = compare(report_of(1.0, seed=1), report_of(2.0, seed=2))

    for measure, truth in (("throughput", 0.5), ("p50", 2.0), ("p90", 2.0), ("p99", 2.0)):
        each = find(ratios, measure)
        assert each.judgement == "worse"
        assert each.ratio == pytest.approx(truth, rel=0.15)
    assert find(compare(report_of(2.0, seed=1), report_of(1.0, seed=2)), "p50").judgement == "better"


def test_noise_is_told() -> None:
    """Of many pairs of the same distribution about one in twenty looks different, as a 95 % interval says."""
    pairs = [compare(report_of(1.0, seed), report_of(1.0, seed + 1000)) for seed in range(20)]

    for measure in ("throughput", "p50", "p99"):
        judgements = [find(ratios, measure).judgement for ratios in pairs]
        assert set(judgements) <= {"noise", "better", "worse"}
        assert judgements.count("noise") >= 15


def test_noise_is_of_both_runs() -> None:
    """Each run is resampled by itself: one that is compared with itself varies, too."""
    report = report_of(1.0, seed=1)
    report.options = replace(report.options, seed=-1)

    for ratio in compare(report, report):
        if ratio.interval is not None:
            assert ratio.ratio == 1.0
            assert ratio.interval[0] < 1.0 < ratio.interval[1]


def test_too_little_to_tell() -> None:
    """With few slices nothing is said, with few operations nothing about the highest percentiles."""
    short = compare(report_of(1.0, 1, seconds=4), report_of(3.0, 2, seconds=4))
    sparse = compare(report_of(1.0, 1, per_second=5), report_of(3.0, 2, per_second=15))

    assert {each.judgement for each in short} == {"too few"}
    assert find(sparse, "p50").judgement == "worse"
    assert find(sparse, "p99").judgement == "too few"
    assert not RatioBound.parse("p99>9x").judge(sparse).holds


def test_operations_of_one_run_are_left_out() -> None:
    """Only what is in both runs has a ratio, and a bound on what is not is not kept."""
    before, after = report_of(1.0, 1), report_of(1.0, 2)
    after.slices[0].histogram("copy").record_value(MILLISECOND)

    ratios = compare(before, after)

    assert {each.operation for each in ratios} == {"step", "all"}
    assert not RatioBound.parse("copy.p50>9x").judge(ratios).holds
    assert compare(before, Report(OPTIONS)) == []


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("p50>1.5x", False),
        ("p50 > 2.5x", True),
        ("step.p90>1.1x", False),
        ("throughput<0.9x", False),
        ("throughput<0.2x", True),
        ("throughput>1.1x", True),
        ("p50<0.9x", True),
    ],
)
def test_bounds(text: str, holds: bool) -> None:
    """A bound is kept on one side of it only."""
    ratios = compare(report_of(1.0, seed=1), report_of(2.0, seed=2))

    assert RatioBound.parse(text).judge(ratios).holds is holds


def test_noise_is_beyond_no_bound() -> None:
    """A ratio beyond its bound that may be noise fails nothing."""
    ratio = Ratio("all", "p99", 1.0, 1.3, (0.9, 1.8))

    assert RatioBound.parse("p99>1.1x").judge([ratio]).holds
    assert not RatioBound.parse("p99>1.1x").judge([replace(ratio, interval=(1.01, 1.8))]).holds


@pytest.mark.parametrize("text", ["", "p99", "p99>1.1", "p95>1x", "p99=1x", "errors>1x", "p99>x"])
def test_other_bounds_are_refused(text: str) -> None:
    """Whatever else is written is refused."""
    with pytest.raises(ValueError, match="must look like"):
        RatioBound.parse(text)


def test_differences() -> None:
    """Rate, pool and machine must agree; versions, target and namespace need not."""
    before, after = report_of(1.0, 1), report_of(1.0, 2)
    after.facts = {**after.facts, "client": {"statepool": "2"}}
    after.options = replace(after.options, target="elsewhere", namespace="other")
    assert differences(before, after) == []

    after.options = replace(after.options, rate=10.0)
    after.facts = {**after.facts, "pool": {"capacity": 32}, "machine": {}}

    assert differences(before, after) == [
        "configuration rate: 0.0 → 10.0",
        "machine cores: 2 → None",
        "pool capacity: 16 → 32",
    ]
