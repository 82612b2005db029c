"""``make bench``: every benchmark, one table; each ratio is measured within this run."""

from rich.console import Console
from rich.table import Table

from benchmarks import (
    allocator,
    attach,
    checksums,
    client_import,
    host_copies,
    journal,
    observing,
    rpc_floor,
    steps,
    transfers,
    watching,
)

MODULES = {
    "allocator, in process": allocator,
    "host copies": host_copies,
    "attached memory": attach,
    "RPC": rpc_floor,
    "engine steps": steps,
    "checksums": checksums,
    "journal": journal,
    "observation": observing,
    "watchers": watching,
    "transfers": transfers,
    "client import": client_import,
}

table = Table("what", "measured", "unit", "bar")
for title, module in MODULES.items():
    table.add_section()
    table.add_row(title, style="bold")
    for name, value, unit, bar in module.rows():
        table.add_row(name, f"{value:.2f}", unit, bar)
Console(width=110).print(table)
