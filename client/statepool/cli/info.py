"""``statepool info``: what a server is, what its pool holds, and how full it is."""

import json
from dataclasses import asdict
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from statepool import Pool, ServerInfo
from statepool.cli.connect import HERE, Connection, connect
from statepool.units import format_bytes, format_seconds


def info(
    *,
    connection: Connection = HERE,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Show what a server is, what its pool holds, and how full it is.

    Args:
        connection: The server.
        as_json: Print one JSON object instead of tables.
    """
    with connect(connection) as client:
        server, pool = client.get_server_info(), client.get_pool()
    console = Console(highlight=False)
    if as_json:
        console.out(json.dumps({"server": _server_facts(server), "pool": _pool_facts(pool)}), highlight=False)
        return
    for title, rows in (("server", _server_rows(server)), ("pool", _pool_rows(pool)), ("usage", _usage_rows(pool))):
        console.print(_table(title, rows))


def _server_facts(server: ServerInfo) -> dict[str, object]:
    return asdict(server) | {"start_time": server.start_time.isoformat()}


def _pool_facts(pool: Pool) -> dict[str, object]:
    return {
        "model_type": pool.model_type,
        "block_count": pool.block_count,
        "capacity": pool.capacity,
        "block_bytes": pool.block_bytes,
        "arena_bytes": pool.layout.nbytes,
        "arrangement": pool.layout.arrangement.value,
        "conv_layout": pool.layout.block.conv_layout.value,
        "tensors": len(pool.layout.tensors),
        "fingerprint": pool.layout.block.fingerprint,
        "block_tokens": pool.block_tokens,
        "num_spec": pool.num_spec,
        "tp_size": pool.tp_size,
        "tp_ranks": list(pool.tp_ranks),
        "devices": list(pool.devices),
        "features": list(pool.features),
        "usage": asdict(pool.usage),
        "limits": asdict(pool.limits),
    }


def _server_rows(server: ServerInfo) -> dict[str, str]:
    return {
        "version": f"statepool {server.version}",
        "incarnation": f"{server.incarnation:#x}",
        "pid": str(server.pid),
        "up": f"{format_seconds(server.uptime)} since {server.start_time:%Y-%m-%d %H:%M:%S} UTC",
        "runs on": ", ".join(f"{name} {version}" for name, version in sorted(server.runtime_versions.items())),
        "calls": f"{sum(server.calls.values()):,}",
    }


def _pool_rows(pool: Pool) -> dict[str, str]:
    ranks = ", ".join(f"{rank} on {device}" for rank, device in zip(pool.tp_ranks, pool.devices, strict=True))
    return {
        "model": f"{pool.model_type}, {len(pool.layout.tensors)} state tensors, conv {pool.layout.block.conv_layout}",
        "blocks": f"{pool.capacity:,} and the null block, {pool.layout.arrangement}",
        "block": f"{pool.block_bytes:,} bytes ({format_bytes(pool.block_bytes)})",
        "arena": f"{format_bytes(pool.layout.nbytes)} per rank",
        "ranks": f"{ranks}, of {pool.tp_size}",
        "tokens": f"{pool.block_tokens} per block, {pool.num_spec} speculative",
        "features": ", ".join(pool.features),
        "fingerprint": pool.layout.block.fingerprint,
    }


def _usage_rows(pool: Pool) -> dict[str, str]:
    usage = pool.usage
    counts = {
        "held": usage.held_blocks,
        "evictable": usage.evictable_blocks,
        "free": usage.free_blocks,
        "releasing": usage.releasing_blocks,
        "committed": usage.committed_blocks,
        "busy": usage.busy_blocks,
        "quarantined": usage.quarantined_blocks,
    }
    shares = {name: f"{count:,} blocks ({count / pool.capacity:.1%})" for name, count in counts.items()}
    return shares | {"sessions": f"{usage.sessions:,}", "waiting": f"{usage.waiting_allocations:,} allocations"}


def _table(title: str, rows: dict[str, str]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    return table
