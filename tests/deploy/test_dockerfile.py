"""Guarantee: the Dockerfile passes hadolint and copies what the ignore file lets through; `make image` builds it."""

import re
import subprocess
import sys
from pathlib import Path

from deploy.server_settings import DOCKER, IMAGE_USER
from statepool.cli.app import COMMANDS

TEXT = (DOCKER / "Dockerfile").read_text(encoding="utf-8")


def test_hadolint() -> None:
    """It has none of the faults that hadolint knows."""
    hadolint = Path(sys.executable).with_name("hadolint")
    answer = subprocess.run([hadolint, DOCKER / "Dockerfile"], capture_output=True, text=True, check=False)

    assert (answer.returncode, answer.stdout) == (0, "")


def test_context() -> None:
    """What it copies exists and is not ignored; everything else is."""
    ignore = (DOCKER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    copied = {name for line in re.findall(r"^COPY (?!--)(.*) \S+$", TEXT, re.MULTILINE) for name in line.split()}

    assert "*" in ignore
    assert copied == {line.removeprefix("!") for line in ignore if line.startswith("!")}
    assert all((DOCKER.parent / name).exists() for name in copied)


def test_user_and_health() -> None:
    """It runs as a user without rights, with a health check that is a command of the client."""
    (check,) = re.findall(r'HEALTHCHECK .* CMD \["statepool", "(\w+)"', TEXT)

    assert IMAGE_USER > 0
    assert check in COMMANDS
