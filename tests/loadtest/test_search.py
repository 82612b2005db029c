"""Guarantee: a search finds the highest rate that holds, believes none that holds once only, and comes to an end."""

import random
from dataclasses import replace

import pytest

from loadtest.test_report import MILLISECOND, OPTIONS
from statepool.loadtest.options import LoadOptions
from statepool.loadtest.record import Recorder
from statepool.loadtest.report import Report
from statepool.loadtest.search import FEWEST_ARRIVALS, MOST_PROBES, PRECISION, RateSearch, find_max
from statepool.loadtest.thresholds import Threshold
from statepool.loadtest.verdicts import Probe


class Server:
    """Serves up to a rate; beyond it everything is late, and what it cannot serve at all waits.

    Attributes:
        asked: Options of each load test.
    """

    def __init__(self, fast: float, most: float, noise: float = 0.0, fault: str = "") -> None:
        self.asked: list[LoadOptions] = []
        self._fast, self._most, self._noise, self._fault, self._random = fast, most, noise, fault, random.Random(0)

    def measure(self, options: LoadOptions) -> Report:
        """Runs a load test."""
        self.asked.append(options)
        rate, recorder = options.rate or self._most, Recorder()
        arrived, served = round(rate * options.duration), round(min(rate, self._most) * options.duration)
        recorder.start()
        limit = self._fast * (1 + self._noise * self._random.uniform(-1, 1))
        for _ in range(served):
            recorder.latency("step_quiet", MILLISECOND if rate <= limit else 50 * MILLISECOND)
        if self._fault and rate > self._fast:
            recorder.error(self._fault, ValueError())
        for what, number in (("arrived", arrived), ("waiting", arrived - served), ("finished", served)):
            recorder.count(what, number)
        recorder.count("generated_tokens")
        report = Report(options)
        report.add(recorder.to_json())
        return report


def search(server: Server, rate: float = 0.0, threshold: str = "p99<2ms") -> tuple[Report, list[Probe]]:
    """Searches; returns the report and what was told meanwhile."""
    told: list[Probe] = []
    options = replace(OPTIONS, rate=rate, duration=5.0)
    return find_max(options, [Threshold.parse(threshold)], server.measure, told.append), told


@pytest.mark.parametrize("fast", [1.0, 37.0, 400.0, 900.0])
@pytest.mark.parametrize("rate", [0.0, 2.0, 600.0])
def test_it_finds_the_rate(fast: float, rate: float) -> None:
    """Wherever it begins, it ends within the precision below the truth, and has tried that rate twice."""
    server = Server(fast, most=1000.0)

    report, told = search(server, rate)

    assert fast / PRECISION / 1.01 <= report.options.rate <= fast
    assert report.probes == told
    assert all(verdict.holds for verdict in report.verdicts)
    assert [probe.holds for probe in told if probe.rate == report.options.rate] == [True, True]
    assert told[-1].is_confirmation
    assert all(not probe.holds for probe in told if probe.rate > report.options.rate)
    assert len({options.namespace for options in server.asked}) == len(server.asked)


def test_it_begins_where_enough_arrives() -> None:
    """A rate at which nothing may arrive in the time that is measured is not where it begins."""
    report, told = search(Server(fast=37.0, most=1000.0), rate=0.001)

    assert told[0].rate == FEWEST_ARRIVALS / report.options.duration
    assert 37.0 / PRECISION / 1.01 <= report.options.rate <= 37.0


def test_what_is_not_served_does_not_hold() -> None:
    """Latencies may be good and the rest wait: the rate is that which is served."""
    report, _ = search(Server(fast=1e9, most=100.0), rate=10.0)

    assert 100 / PRECISION <= report.options.rate <= 100 * PRECISION * 1.01


@pytest.mark.parametrize("threshold", ["p99<1h", "errors<0.001%"])
def test_errors_do_not_hold(threshold: str) -> None:
    """A rate at which something fails is too high, unless a threshold allows it."""
    report, told = search(Server(fast=100.0, most=1000.0, fault="step"), rate=10.0, threshold=threshold)
    assert report.options.rate <= 100.0
    assert any("operations failed" in probe.row()[2] or "errors" in probe.row()[2] for probe in told)

    allowed, _ = search(Server(fast=100.0, most=1000.0, fault="step"), rate=10.0, threshold="errors<=5")
    assert allowed.options.rate > 900.0


def test_none_holds() -> None:
    """Where no rate holds, it says so after all that make sense."""
    report, told = search(Server(fast=0.0, most=1000.0))

    assert not report.verdicts[-1].holds
    assert told[-1].rate >= 2 / 5.0 > told[-1].rate / 2
    assert not any(probe.holds for probe in told[1:])


def test_noise_is_survived() -> None:
    """Where the truth moves by a tenth from probe to probe, it ends within it, with a rate that has held twice."""
    for noise in (0.05, 0.1, 0.3):
        report, told = search(Server(fast=200.0, most=1000.0, noise=noise))

        assert report.verdicts[-1].holds
        assert 200 * (1 - noise) / PRECISION / 1.01 <= report.options.rate <= 200 * (1 + noise)
        assert len(told) < MOST_PROBES


def test_it_always_ends() -> None:
    """Whatever the answers are, the tries are few."""
    for seed in range(300):
        luck, tries = random.Random(seed), RateSearch(first=100.0, lowest=0.1)
        for _ in range(200):
            rate = tries.next_rate()
            if rate is None or rate > 1e6:
                break
            tries.tried(rate, holds=luck.random() < 0.5)
        else:
            pytest.fail(f"seed {seed} goes on")
