"""What a load test ran on: machine, client, server, pool."""

import os
import platform
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

from statepool.descriptions import Pool, ServerInfo
from statepool.loadtest.options import LoadOptions
from statepool.units import format_bytes

Facts: TypeAlias = dict[str, dict[str, object]]
"""By subject and name, as `json` writes them."""

MUST_AGREE = ("machine", "pool")
"""Subjects that must be the same where two load tests are compared; versions may differ, that is what is compared."""


def gather(server: ServerInfo, pool: Pool) -> Facts:
    """Gathers the facts of a load test from this machine."""
    versions = {name: version(name) for name in ("grpcio", "numpy", "protobuf")}
    return {
        "machine": {
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "system": f"{platform.system()} {platform.release()}",
        },
        "client": {"statepool": version("statepool"), "python": platform.python_version(), **versions},
        "server": {
            "statepool": server.version,
            **server.runtime_versions,
            "uptime_seconds": round(server.uptime),
            "incarnation": f"{server.incarnation:#x}",
        },
        "pool": _pool(pool),
    }


def configuration(options: LoadOptions) -> dict[str, object]:
    """Gives what was asked for, by name, but for what is different in every run."""
    asked = asdict(options)
    workload = asked.pop("workload")
    return {
        "workload": workload.pop("name"),
        **workload,
        **{name: value for name, value in asked.items() if name not in ("target", "namespace")},
    }


def describe(options: LoadOptions, facts: Facts) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yields what was asked for and what it ran on for people: subjects, with names and values."""
    asked: dict[str, object] = {"target": options.target, **configuration(options)}
    for subject, values in {"configuration": asked, **facts}.items():
        yield subject.capitalize(), [(name.replace("_", " "), _text(name, value)) for name, value in values.items()]


def _text(name: str, value: object) -> str:
    if isinstance(value, list):
        return ", ".join(str(each) for each in value)
    if name.endswith("_bytes") and isinstance(value, int):
        return format_bytes(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _pool(pool: Pool) -> dict[str, object]:
    block = pool.layout.block
    return {
        "model_type": pool.model_type,
        "family": pool.family,
        "capacity": pool.capacity,
        "block_bytes": pool.block_bytes,
        "block_tokens": pool.block_tokens,
        "num_spec": pool.num_spec,
        "tp_size": pool.tp_size,
        "tp_ranks": list(pool.tp_ranks),
        "devices": list(pool.devices),
        "arrangement": pool.layout.arrangement.value,
        "conv_layout": block.conv_layout.value,
        "fingerprint": block.fingerprint,
        "features": list(pool.features),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
