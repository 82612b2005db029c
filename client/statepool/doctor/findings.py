"""What a check has found."""

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """How bad it is."""

    OK = "ok"
    """As it should be."""
    WARNING = "warning"
    """It works, but worse than it could, or not for everybody."""
    FAILURE = "failure"
    """Something does not work, or will not."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact about a deployment, judged."""

    check: str
    """What was looked at, for example "memory limit"."""
    verdict: Verdict
    """How bad it is."""
    detail: str
    """What was found, with the numbers."""
    remedy: str = ""
    """What to do about it; empty where nothing is wrong."""


def good(check: str, detail: str) -> Finding:
    """Reports that all is well."""
    return Finding(check, Verdict.OK, detail)


def doubtful(check: str, detail: str, remedy: str) -> Finding:
    """Reports what works less well than it could."""
    return Finding(check, Verdict.WARNING, detail, remedy)


def bad(check: str, detail: str, remedy: str) -> Finding:
    """Reports what does not work."""
    return Finding(check, Verdict.FAILURE, detail, remedy)
