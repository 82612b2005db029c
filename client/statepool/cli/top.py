"""``statepool top``: how full a server is and what it does, as it goes on."""

import contextlib
import json
import time
from collections.abc import Iterator
from itertools import islice
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.live import Live

from statepool import Client
from statepool.cli.connect import HERE, Connection, connect
from statepool.cli.options import SomeTime
from statepool.cli.top_view import view
from statepool.errors import DeadlineExceededError, UnavailableError
from statepool.intervals import Interval

Facts = dict[str, object]
"""What is shown, as JSON has it."""

MOST_SESSIONS = 8
"""Sessions that are shown: those with the most blocks."""
_PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


def top(
    *,
    connection: Connection = HERE,
    interval: SomeTime = 1.0,
    once: Annotated[bool, Parameter(negative=())] = False,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Show how full a server is and what it does, as it goes on; Ctrl-C ends it. In a pipe, look follows look.

    Args:
        connection: The server.
        interval: Time between two looks, over which rates and latencies are taken.
        once: Look at one interval, and end.
        as_json: Print one JSON object per interval, in a line.
    """
    console, target = Console(highlight=False), connection.target
    with connect(connection) as client:
        looks = islice(_looks(client, interval, is_patient=not once), 1 if once else None)
        if as_json:
            for facts in looks:
                console.out(json.dumps({"target": target} | facts), highlight=False)
        elif once:
            console.print(view(target, next(looks)))
        else:
            _show(console, target, looks)


def _show(console: Console, target: str, looks: Iterator[Facts]) -> None:
    """Shows look after look until Ctrl-C: on a terminal in place of the one before, else one below the other."""
    with contextlib.suppress(KeyboardInterrupt):
        if not console.is_terminal:
            for facts in looks:
                console.print(view(target, facts))
            return
        with Live(console=console, screen=True, auto_refresh=False) as live:
            for facts in looks:
                live.update(view(target, facts), refresh=True)


def _looks(client: Client, interval: float, *, is_patient: bool) -> Iterator[Facts]:
    """Looks again and again; a server that does not answer is waited for, if asked."""
    before, looked_at = client.get_metrics(), time.monotonic()
    while True:
        time.sleep(interval)
        try:
            after, now = client.get_metrics(), time.monotonic()
            yield _facts(Interval(before, after, now - looked_at)) | {"sessions": _sessions(client)}
        except (UnavailableError, DeadlineExceededError) as error:
            if not is_patient:
                raise
            yield {"error": f"no answer: {error.message}"}
        else:
            before, looked_at = after, now


def _facts(seen: Interval) -> Facts:
    now, blocks = seen.after, seen.after.by("statepool_blocks", "state")
    capacity = sum(blocks.values())
    return {
        "incarnation": f"{now.incarnation:016x}",
        "seconds": seen.seconds,
        "blocks": {state: int(count) for state, count in blocks.items()} | {"capacity": int(capacity)},
        "occupancy": (capacity - blocks["free"] - blocks["evictable"]) / capacity,
        "marks": {
            name: int(now.total(f"statepool_{name}_blocks"))
            for name in ("findable", "busy", "quarantined", "condemned")
        },
        "counts": {name: int(now.total(f"statepool_{name}")) for name in ("sessions", "sequences", "standing_fences")}
        | {"attachments": int(now.total("statepool_attachments"))},
        "queues": {
            "calls": int(now.total("statepool_current_rpcs", kind="call")),
            "streams": int(now.total("statepool_current_rpcs", kind="stream")),
            "copies": int(now.total("statepool_queued_copies")),
            "waiting": int(now.total("statepool_waiting_allocations")),
        },
        "per_second": {
            name: seen.rate(f"statepool_{name}_total")
            for name in ("steps", "rpcs", "allocated_blocks", "released_blocks", "evicted_blocks", "commits")
        }
        | {"copied_bytes": seen.rate("statepool_copied_bytes_total")},
        "refusals_per_second": _by_second(seen, "statepool_refusals_total", "reason"),
        "hit_rate": seen.ratio("statepool_prompt_hit_tokens_total", "statepool_prompt_tokens_total"),
        "step_seconds": _percentiles(seen, "statepool_step_seconds"),
        "copy_seconds": _percentiles(seen, "statepool_copy_seconds", kind="copy"),
        "calls": [
            {"method": method, "per_second": rate} | _percentiles(seen, "statepool_rpc_seconds", method=method)
            for method, rate in _by_second(seen, "statepool_rpcs_total", "method").items()
        ],
        "loop_lag_seconds": now.total("statepool_event_loop_lag_seconds"),
        "dead_parts": [part for part, is_up in now.by("statepool_part_up", "part").items() if not is_up],
        "is_draining": bool(now.total("statepool_draining")),
    }


def _by_second(seen: Interval, name: str, label: str) -> dict[str, float]:
    growth = sorted(seen.growth_by(name, label).items(), key=lambda item: -item[1])
    return {key: count / seen.seconds for key, count in growth if count}


def _percentiles(seen: Interval, histogram: str, **labels: str) -> dict[str, float | None]:
    return {name: seen.quantile(share, histogram, **labels) for name, share in _PERCENTILES.items()}


def _sessions(client: Client) -> list[dict[str, object]]:
    largest = sorted(client.list_sessions(), key=lambda session: -session.block_count)[:MOST_SESSIONS]
    return [
        {"session_id": each.session_id, "epoch": each.epoch, "blocks": each.block_count, "ttl_seconds": each.ttl}
        for each in largest
    ]
