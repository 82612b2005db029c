"""Guarantee: a threshold holds exactly where it says, and what goes without saying is judged too."""

import pytest

from loadtest.test_report import MILLISECOND, report_of, served
from statepool.loadtest.options import AlignWorkload
from statepool.loadtest.record import Recorder
from statepool.loadtest.report import Report
from statepool.loadtest.thresholds import Threshold, judge


def measured(errors: int = 0) -> Report:
    """Measures a hundred steps of 1 to 100 ms within two seconds, beside what fails."""
    recorder = Recorder()
    recorder.start()
    for number in range(1, 101):
        recorder.latency("step_quiet", number * MILLISECOND)
    recorder.count("generated_tokens")
    for _ in range(errors):
        recorder.error("step", ValueError())
    return report_of(recorder)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("p50<51ms", True),
        ("p50<49ms", False),
        (" step_quiet.p99 < 0.1s ", True),
        ("step_quiet.p99.9<=99ms", False),
        ("max<1s", True),
        ("max>99ms", True),
        ("mean<50ms", False),
        ("mean<=51ms", True),
        ("read.p50<1h", False),
        ("read.throughput>=0/s", False),
        ("throughput>49/s", True),
        ("throughput>50/s", False),
        ("throughput>=50/s", True),
        ("step_quiet.throughput<50.5/s", True),
        ("errors<1", True),
        ("errors<0.1%", True),
    ],
)
def test_bounds(text: str, holds: bool) -> None:
    """Every form, on both sides of its bound; an operation that was never measured keeps none."""
    verdict = judge(measured(), [Threshold.parse(text)])[-1]

    assert (verdict.text, verdict.holds) == (text, holds)


@pytest.mark.parametrize(
    ("text", "holds"), [("errors<=1", True), ("errors<1", False), ("errors<1%", True), ("errors<0.5%", False)]
)
def test_errors(text: str, holds: bool) -> None:
    """One error of 101 operations is as many, and 0.99 %; what is said of errors replaces that there must be none."""
    report = measured(errors=1)

    assert all(verdict.holds for verdict in judge(report, [Threshold.parse(text)])) is holds
    assert not all(verdict.holds for verdict in judge(report, [Threshold.parse("p50<1h")]))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "p99",
        "p99<",
        "p99=2ms",
        "p100<2ms",
        "p99<2",
        "p99<2 miles",
        "throughput>10",
        "errors<1ms",
        "hits>1",
        "p99<>2s",
    ],
)
def test_other_forms_are_refused(text: str) -> None:
    """Whatever else is written is refused, with the forms that are known; a duration needs a unit."""
    with pytest.raises(ValueError, match="must"):
        Threshold.parse(text)


@pytest.mark.parametrize(("text", "bound"), [("p99=5ms", 0.005), ("step_quiet.p99.9=1s", 1.0)])
def test_objectives(text: str, bound: float) -> None:
    """An objective is a latency that may be reached."""
    threshold = Threshold.objective(text)

    assert (threshold.comparison, threshold.bound) == ("<=", bound)


@pytest.mark.parametrize("text", ["p99", "p99<5ms", "max=1s", "errors=0", "p99=5", "p99==1s", "p99=x", "p1.2.3=1s"])
def test_other_objectives_are_refused(text: str) -> None:
    """Only percentiles have objectives."""
    with pytest.raises(ValueError, match="must"):
        Threshold.objective(text)


@pytest.mark.parametrize("text", ["foo.p99<1ms", "foo.throughput>1/s", "commit.p99<1ms"])
def test_operations_that_are_not_measured(text: str) -> None:
    """What a workload never does is refused with what it does; all together can always be named."""
    align = AlignWorkload(engines=1, sequences=1, shared_blocks=1, prompt_tokens=1, output_tokens=1)
    with pytest.raises(ValueError, match=r"align measures no .*step_quiet.*, all$"):
        Threshold.parse(text).check(align)
    for known in ("step_quiet.p99<1s", "all.max<1s", "p99<1s", "errors<1"):
        Threshold.parse(known).check(align)


def test_nothing_measured_is_told_as_such() -> None:
    """The verdict on a run in which nothing happened says so once."""
    (verdict,) = [each for each in judge(report_of(Recorder()), []) if not each.holds]

    assert str(verdict) == "something happens: nothing was measured"


def test_what_goes_without_saying() -> None:
    """A good report has two verdicts without being asked, and a mismatch fails it."""
    report = report_of(served())
    assert [verdict.holds for verdict in judge(report, [])] == [True, True]

    report.mismatch_count = 1

    assert [verdict.holds for verdict in judge(report, [])] == [False, True]
