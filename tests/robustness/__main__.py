"""Runs seed after seed, prints what came of it, and how to run again what went wrong."""

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from robustness.faults import FAULTS
from robustness.run import run
from robustness.scenario import draw

COMMAND = "PYTHONPATH=tests .venv/bin/python -m robustness"


def main() -> int:
    """Runs; returns 1 if there was a violation."""
    options = _options()
    end, seed = time.monotonic() + options.minutes * 60, options.seed
    totals, violations, runs = Counter[str](), 0, 0
    while runs == 0 or time.monotonic() < end:
        faults = options.faults.split(",")
        scenario = draw(seed, options.seconds, faults)
        folder = Path(tempfile.mkdtemp(prefix="statepool-robustness-", dir=options.folder))
        verdict = run(scenario, folder)
        totals.update(verdict.counts)
        runs += 1
        _tell(seed, options, verdict.violations, folder)
        violations += len(verdict.violations)
        if not verdict.violations:
            shutil.rmtree(folder)
        seed += 1
    _print_table(totals, runs, violations)
    return 1 if violations else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="robustness", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="seed of the first run; the next has the next")
    parser.add_argument("--minutes", type=float, default=0.0, help="begin runs for so long; 0: one run")
    parser.add_argument("--seconds", type=float, default=15.0, help="traffic and faults of each run")
    parser.add_argument("--faults", default=",".join(FAULTS), help="faults that may strike")
    parser.add_argument("--folder", default="/dev/shm" if Path("/dev/shm").is_dir() else None, help="for histories")  # noqa: S108
    return parser.parse_args()


def _tell(seed: int, options: argparse.Namespace, violations: list[str], folder: Path) -> None:
    print(f"seed {seed}: {len(violations)} violations", flush=True)
    for violation in violations[:20]:
        print(f"  {violation}")
    if violations:
        print(f"  history and logs: {folder}")
        print(f"  again: {COMMAND} --seed {seed} --seconds {options.seconds:g} --faults {options.faults}", flush=True)


def _print_table(totals: Counter[str], runs: int, violations: int) -> None:
    rows = {"runs": runs, **dict(sorted(totals.items())), "violations": violations}
    width = max(map(len, rows))
    for name, count in rows.items():
        print(f"{name:<{width}}  {count:>9,}")


if __name__ == "__main__":
    sys.exit(main())
