"""Checks of a deployment, and how to mend what they find; `statepool doctor` prints them."""

from statepool.doctor.deployment import Deployment, Wanted
from statepool.doctor.examination import examine
from statepool.doctor.findings import Finding, Verdict

__all__ = ["Deployment", "Finding", "Verdict", "Wanted", "examine"]
