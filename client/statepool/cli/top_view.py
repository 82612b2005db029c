"""What ``statepool top`` looks like."""

from collections.abc import Mapping
from typing import Any

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from statepool.units import format_bytes, format_seconds

BAR_CELLS = 60
"""Width of the bar of blocks."""
MOST_CALLS = 10
"""Methods that are shown: those called most."""
STATES = {
    "held": ("█", "green"),
    "releasing": ("▓", "yellow"),
    "evictable": ("▒", "blue"),
    "free": ("░", "bright_black"),
}
"""Glyph and colour of blocks by state, in the order of the bar."""


def view(target: str, facts: Mapping[str, Any]) -> RenderableType:
    """Draws the facts of an interval.

    Args:
        target: Where the server listens.
        facts: What `statepool.cli.top` has found; or an ``error``.
    """
    if "error" in facts:
        return Group(Text(target, style="bold"), Text(facts["error"], style="bold red"))
    return Group(
        _head(target, facts),
        _bar(facts["blocks"]),
        Columns([_rates(facts), _counts(facts), _latencies(facts)], padding=(0, 3)),
        Columns([_calls(facts["calls"]), _sessions(facts["sessions"])], padding=(0, 3)),
    )


def _head(target: str, facts: Mapping[str, Any]) -> Text:
    head = Text.assemble((target, "bold"), f"  {facts['incarnation']}  loop lag ", _seconds(facts["loop_lag_seconds"]))
    for part in facts["dead_parts"]:
        head.append(f"  {part} died", "bold red")
    if facts["is_draining"]:
        head.append("  draining", "bold yellow")
    return head


def _bar(blocks: Mapping[str, int]) -> Text:
    bar, legend, done = Text(), Text(), 0
    for state, (glyph, style) in STATES.items():
        ends = [round(count / blocks["capacity"] * BAR_CELLS) for count in (done, done + blocks[state])]
        bar.append(glyph * (ends[1] - ends[0]), style)
        legend.append(f"  {glyph} {state} {blocks[state]:,}", style)
        done += blocks[state]
    return bar + legend


def _rates(facts: Mapping[str, Any]) -> Table:
    table = _table("per second")
    for name, rate in facts["per_second"].items():
        value = format_bytes(round(rate)) if name.endswith("_bytes") else f"{rate:,.1f}"
        table.add_row(name.replace("_", " "), value)
    for reason, rate in facts["refusals_per_second"].items():
        table.add_row(Text(reason, style="yellow"), f"{rate:,.1f}")
    return table


def _counts(facts: Mapping[str, Any]) -> Table:
    table = _table("now")
    for group in ("counts", "marks", "queues"):
        for name, count in facts[group].items():
            wrong = count and name in ("quarantined", "condemned", "standing_fences")
            table.add_row(Text(name.replace("_", " "), style="bold red" if wrong else ""), f"{count:,}")
    return table


def _latencies(facts: Mapping[str, Any]) -> Table:
    table = _table("latency", "p50", "p90", "p99")
    for name in ("step", "copy"):
        table.add_row(name, *map(_seconds, facts[f"{name}_seconds"].values()))
    hit_rate = facts["hit_rate"]
    table.add_row("hit rate", "—" if hit_rate is None else f"{hit_rate:.1%}")
    table.add_row("occupancy", f"{facts['occupancy']:.1%}")
    return table


def _calls(calls: list[Mapping[str, Any]]) -> Table:
    table = _table("calls", "/ s", "p50", "p99")
    for call in calls[:MOST_CALLS]:
        table.add_row(call["method"], f"{call['per_second']:,.1f}", _seconds(call["p50"]), _seconds(call["p99"]))
    return table


def _sessions(sessions: list[Mapping[str, Any]]) -> Table:
    table = _table("sessions", "epoch", "blocks", "ttl")
    for each in sessions:
        row = (str(each["session_id"]), str(each["epoch"]), f"{each['blocks']:,}", _seconds(each["ttl_seconds"]))
        table.add_row(*row)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(box=None, pad_edge=False, show_header=True)
    table.add_column(title, header_style="bold", no_wrap=True)
    for column in columns or ("",):
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _seconds(value: float | None) -> str:
    return "—" if value is None else format_seconds(value)
