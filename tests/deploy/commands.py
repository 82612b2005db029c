"""The client's command in a process of its own, in surroundings of a test's choice."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

STATEPOOL = Path(sys.executable).with_name("statepool")
TIMEOUT_SECONDS = 90


def run(
    *arguments: str, within: Sequence[str] = (), env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> "subprocess.CompletedProcess[str]":
    """Runs the command.

    Args:
        arguments: What follows its name.
        within: A command that makes the surroundings and then runs what follows it.
        env: Variables beside those of this process.
        cwd: Where it runs; None: where this process does.
    """
    patient = {"STATEPOOL_TIMEOUT": f"{TIMEOUT_SECONDS / 2}s"}  # a busy machine is no fault
    return subprocess.run(
        [*within, str(STATEPOOL), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_SECONDS,
        env={**os.environ, **patient, **(env or {})},
        cwd=cwd,
    )


class Report:
    """What the doctor has found.

    Attributes:
        exit_code: Of the command.
        findings: By the name of the check.
    """

    def __init__(self, *arguments: str, within: Sequence[str] = (), env: Mapping[str, str] | None = None) -> None:
        """Runs the doctor."""
        answer = run("doctor", "--json", *arguments, within=within, env=env)
        assert answer.stdout, answer.stderr
        facts = json.loads(answer.stdout)
        self.exit_code = answer.returncode
        self.findings: dict[str, dict[str, str]] = {finding["check"]: finding for finding in facts["findings"]}
        assert facts["is_well"] == (self.exit_code == 0)

    def verdict(self, check: str) -> str:
        """Tells how a check ended; empty: it did not apply."""
        return self.findings[check]["verdict"] if check in self.findings else ""

    def failures(self) -> list[str]:
        """Lists the checks that failed."""
        return [check for check, finding in self.findings.items() if finding["verdict"] == "failure"]
