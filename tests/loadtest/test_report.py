"""Guarantee: the report adds up what the processes have counted, and nothing that went wrong is left out."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from statepool.errors import OverloadedError
from statepool.loadtest.options import AlignWorkload, LoadOptions
from statepool.loadtest.record import MAX_MISMATCHES, Recorder
from statepool.loadtest.report import Report, ReportFileError, read_report
from statepool.loadtest.slices import TTFT
from statepool.loadtest.summary import summary
from statepool.loadtest.thresholds import Threshold, judge

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


def passes(report: Report, *thresholds: str) -> bool:
    """Tells whether all that must hold does."""
    return all(verdict.holds for verdict in judge(report, [Threshold.parse(text) for text in thresholds]))


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
    assert report.total().histograms["step_quiet"].get_total_count() == 2
    assert "16 tokens, 12 of them found (75%)" in "\n".join(summary(report))
    assert passes(report)


def test_every_mismatch_counts() -> None:
    """Of many mismatches the first ones of each process are told, and all are counted."""
    recorders = served(), served()
    for recorder in recorders:
        for number in range(3 * MAX_MISMATCHES):
            recorder.verify(f"comparison {number}", matches=False)

    report = report_of(*recorders)

    assert f"{6 * MAX_MISMATCHES} comparisons, {6 * MAX_MISMATCHES} mismatches" in "\n".join(summary(report))
    assert report.to_json()["mismatch_count"] == 6 * MAX_MISMATCHES
    assert len(report.mismatches) == 2 * MAX_MISMATCHES
    assert not passes(report)


def test_errors_have_an_example() -> None:
    """Of each kind of error what the first one said is told, over all slices and processes, and is kept in the file."""
    recorders = served(), served()
    for number, recorder in enumerate(recorders):
        recorder.error("step", OverloadedError(f"queue {number} is\nfull"))

    report = Report.from_json(report_of(*recorders).to_json())

    assert "2 x step: OverloadedError, such as: queue 0 is full" in "\n".join(summary(report))


def test_first_tokens_are_no_operations() -> None:
    """The time to the first token has its own line and objective, but is no part of all operations."""
    report = report_of(served())

    assert report.total().operations == 1
    assert passes(report, "p99<10ms")
    assert not passes(report, f"{TTFT}.p99<10ms")


@pytest.mark.parametrize("fault", ["errors", "nothing measured", "no token"])
def test_faults(fault: str) -> None:
    """An error, a run in which nothing was measured, and one that generated nothing are faults."""
    report = report_of(served())
    if fault == "errors":
        report.slices[0].errors["step: OverloadedError"] += 1
    elif fault == "nothing measured":
        report.slices[0].histograms.clear()
    else:
        report.slices[0].counts.clear()

    assert not passes(report)


def test_requests_that_still_wait_are_told() -> None:
    """In an open loop that is too fast, those that were never served are not in the latencies, so they are counted."""
    recorder = served()
    recorder.count("arrived", 9)
    recorder.count("waiting", 7)

    report = report_of(recorder)
    report.options = replace(OPTIONS, rate=4.0)

    assert "waiting   7 of 9 that have arrived" in "\n".join(summary(report))


def test_warm_up_is_not_measured() -> None:
    """Before the start only errors and comparisons are recorded."""
    recorder = Recorder()
    recorder.latency("step_quiet", MILLISECOND)
    recorder.count("finished")
    recorder.verify("early", matches=False)

    report = report_of(recorder)

    total = report.total()
    assert (total.operations, total.counts, report.mismatch_count) == (0, {}, 1)


def test_slices_hold_what_happened_in_them() -> None:
    """Each slice has its own; what ends late belongs to the last one, and packing changes nothing."""
    now_ns = 0
    recorder = Recorder(slices=3, slice_seconds=0.05, now_ns=lambda: now_ns)
    recorder.start()
    for now_ns in (0, 49 * MILLISECOND, 50 * MILLISECOND, 100 * MILLISECOND, 150 * MILLISECOND, 10**12):  # noqa: B007
        recorder.latency("step_quiet", MILLISECOND)
        recorder.count("copies")
        recorder.pack()

    report = report_of(recorder)

    assert [each.operations for each in report.slices] == [2, 1, 3]
    assert [each.counts["copies"] for each in report.slices] == [2, 1, 3]


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Everything that is told of a report is told of its file."""
    report = report_of(served(), served())
    report.verdicts = judge(report, [Threshold.parse("p99<1ms")])
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report.to_json()), encoding="utf-8")

    again = read_report(path)

    assert again.to_json() == report.to_json()
    assert summary(again) == summary(report)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ({"format": "k6"}, "not a load-test report"),
        ({"version": 2}, "version 2; this program reads version 1"),
        ({"slices": [{}]}, "damaged"),
        ({"options": {"workload": {"name": "other"}}}, "damaged"),
        ({"slices": [{"histograms": {"read": "HISTFAAAABgAAA=="}, "errors": {}, "counts": {}}]}, "damaged"),
        ({"slices": [{"histograms": {"read": "no base64"}, "errors": {}, "counts": {}}]}, "damaged"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, damage: dict[str, Any], words: str) -> None:
    """A file of another kind or version, or a damaged one, is told as such."""
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report_of(served()).to_json() | damage), encoding="utf-8")

    with pytest.raises(ReportFileError, match=words):
        read_report(path)


@pytest.mark.parametrize("content", [None, b"", b"[]", b"\xff"])
def test_files_that_are_no_json_are_refused(tmp_path: Path, content: bytes | None) -> None:
    """No file, an empty one, another document and one that is no text."""
    path = tmp_path / "report.json"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(ReportFileError, match=r"report\.json"):
        read_report(path)
