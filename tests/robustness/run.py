"""One run: traffic, faults, history, verdict."""

import random
import time
from collections import Counter
from pathlib import Path

from robustness.audit import audit
from robustness.cluster import Cluster
from robustness.faults import FAULTS
from robustness.history import Fact, read
from robustness.scenario import Scenario
from robustness.twin import Courses
from robustness.verdict import Judge, Verdict

WARM_UP_SECONDS = 60.0
"""How long the schedulers may take to be at work, before the first fault."""
MOST_PAUSE_SECONDS = 1.0
"""How long there is peace between two faults at most."""
_WATCH_SECONDS = 0.05


def run(scenario: Scenario, folder: Path) -> Verdict:
    """Runs a scenario and judges it.

    Args:
        scenario: The run.
        folder: An empty folder for all that it writes.
    """
    with Cluster(scenario, folder) as cluster:
        _wait_for_traffic(folder)
        try:
            strikes = _strike(cluster)
        except AssertionError as error:
            return Verdict([f"a server did not come back: {error}"])
        cluster.calm()
        cluster.revive()
        cluster.end_schedulers()
        history = read(folder)
        verdict = Judge(scenario).judge(history)
        if scenario.is_alone:
            verdict.violations += Courses(scenario, cluster.model).follow(history)
        verdict.violations += audit(cluster, verdict.certain)
    verdict.counts.update({f"fault: {name}": count for name, count in strikes.items()})
    return verdict


def _wait_for_traffic(folder: Path) -> None:
    deadline = time.monotonic() + WARM_UP_SECONDS
    while time.monotonic() < deadline and not any(map(_is_traffic, read(folder))):
        time.sleep(_WATCH_SECONDS)


def _is_traffic(fact: Fact) -> bool:
    return fact.kind == "repeated" or (fact.kind == "done" and fact["compared"] > 0)


def _strike(cluster: Cluster) -> Counter[str]:
    """Lets faults strike until the time is over; returns how often each has."""
    scenario = cluster.scenario
    dice, strikes = random.Random(f"{scenario.seed}.faults"), Counter[str]()
    end = time.monotonic() + scenario.seconds
    while time.monotonic() < end:
        name = dice.choice(scenario.faults)
        cluster.history.note("striking", fault=name)
        FAULTS[name](cluster, dice)
        strikes[name] += 1
        peace = min(end, time.monotonic() + dice.uniform(0.0, MOST_PAUSE_SECONDS))
        while time.monotonic() < peace:
            time.sleep(_WATCH_SECONDS)
            cluster.revive()
    return strikes
