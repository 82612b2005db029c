"""What kustomize makes of folders, checked against the schemas of Kubernetes."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

VERSIONS = ("1.29", "1.33", "1.37")
"""The first version with native sidecars by default, one between, and the newest whose schemas are known here."""


def build(folder: Path) -> dict[str, dict[str, Any]]:
    """Builds a kustomization; returns its objects by kind."""
    kubectl = Path(sys.executable).with_name("kubectl")
    answer = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return {built["kind"]: built for built in yaml.safe_load_all(answer.stdout)}


def validate(built: dict[str, Any]) -> None:
    """Checks an object against the strict schema of every version.

    Raises:
        kubernetes_validate.ValidationError: It is not what the schema says.
    """
    for version in VERSIONS:
        kubernetes_validate.validate(built, version, strict=True)


def sidecar(workload: dict[str, Any]) -> dict[str, Any]:
    """Takes the server's container out of a workload."""
    (container,) = workload["spec"]["template"]["spec"]["initContainers"]
    assert container["name"] == "statepool"
    return dict(container)


def volumes(workload: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Takes a workload's emptyDir volumes, by name."""
    return {volume["name"]: volume["emptyDir"] for volume in workload["spec"]["template"]["spec"]["volumes"]}


def parse_quantity(text: str) -> int:
    """Reads a size such as 512Mi, in bytes."""
    return int(text[:-2]) * {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}[text[-2:]]
