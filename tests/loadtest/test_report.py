"""Guarantee: the report adds up what the processes have counted, and nothing that went wrong is left out."""

from dataclasses import replace

import pytest

from statepool.cli.loadtest import judge
from statepool.loadtest.options import AlignWorkload, LoadOptions
from statepool.loadtest.record import MAX_MISMATCHES, TTFT, Recorder
from statepool.loadtest.report import Objective, Report

OPTIONS = LoadOptions(
    target="",
    duration=2.0,
    warmup=0.0,
    workload=AlignWorkload(engines=1, sequences=1, shared_blocks=1, prompt_tokens=1, output_tokens=1),
    rate=0.0,
    processes=2,
    verify=1.0,
    seed=0,
)
MILLISECOND = 10**6


def served() -> Recorder:
    """Records a step that generated a token."""
    recorder = Recorder()
    recorder.start()
    recorder.latency("step_quiet", 3 * MILLISECOND)
    recorder.latency(TTFT, 40 * MILLISECOND)
    recorder.count("generated_tokens")
    recorder.count("prompt_tokens", 8)
    recorder.count("hit_tokens", 6)
    return recorder


def report_of(*recorders: Recorder) -> Report:
    """Adds processes up."""
    report = Report(OPTIONS)
    for recorder in recorders:
        report.add(recorder.to_json())
    return report


def test_processes_are_added_up() -> None:
    """Counts and latencies of all processes are in the report, and a good one is no fault."""
    report = report_of(served(), served())

    assert report.to_json()["counts"] == {"generated_tokens": 2, "prompt_tokens": 16, "hit_tokens": 12}
    assert report.histograms["step_quiet"].get_total_count() == 2
    assert "16 tokens, 12 of them found (75%)" in "\n".join(report.summary())
    assert judge(report, []) == 0


def test_every_mismatch_counts() -> None:
    """Of many mismatches the first ones of each process are told, and all are counted."""
    recorders = served(), served()
    for recorder in recorders:
        for number in range(3 * MAX_MISMATCHES):
            recorder.verify(f"comparison {number}", matches=False)

    report = report_of(*recorders)

    assert f"{6 * MAX_MISMATCHES} comparisons, {6 * MAX_MISMATCHES} mismatches" in "\n".join(report.summary())
    assert report.to_json()["mismatch_count"] == 6 * MAX_MISMATCHES
    assert len(report.mismatches) == 2 * MAX_MISMATCHES
    assert judge(report, []) == 1


def test_first_tokens_are_no_operations() -> None:
    """The time to the first token has its own line and objective, but is no part of all operations."""
    report = report_of(served())

    assert report.operations == 1
    assert Objective.parse("p99=10ms").missed_by(report) is None
    assert Objective.parse(f"{TTFT}.p99=10ms").missed_by(report) is not None


@pytest.mark.parametrize("fault", ["errors", "nothing measured", "no token"])
def test_faults(fault: str) -> None:
    """An error, a run in which nothing was measured, and one that generated nothing are faults."""
    report = report_of(served())
    if fault == "errors":
        report.errors["step: OverloadedError"] += 1
    elif fault == "nothing measured":
        report.histograms.clear()
    else:
        report.counts.clear()

    assert judge(report, []) == 1


def test_requests_that_still_wait_are_told() -> None:
    """In an open loop that is too fast, those that were never served are not in the latencies, so they are counted."""
    recorder = served()
    recorder.count("waiting", 7)

    report = report_of(recorder)

    assert "waiting   7 requests" in "\n".join(report.summary())


def test_warm_up_is_not_measured() -> None:
    """Before the start only errors and comparisons are recorded."""
    recorder = Recorder()
    recorder.latency("step_quiet", MILLISECOND)
    recorder.count("finished")
    recorder.verify("early", matches=False)

    report = report_of(recorder)

    assert (report.operations, report.counts, report.mismatch_count) == (0, {}, 1)
    assert replace(OPTIONS) == report.options
