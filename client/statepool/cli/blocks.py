"""``statepool blocks``: which blocks are in use, by whom, and what they hold."""

import json
from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.table import Table

from statepool import BlockPage, BlockState
from statepool.cli.connect import HERE, Connection, connect


def blocks(
    *,
    connection: Connection = HERE,
    state: list[BlockState] | None = None,
    session: Annotated[int | None, Parameter(validator=Number(gte=1, lt=2**64))] = None,
    limit: Annotated[int, Parameter(validator=Number(gte=0))] = 100,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Show blocks in the order of their ids: state, references, owner, prefix hash.

    Args:
        connection: The server.
        state: Only blocks in this state; may be repeated. Default: all but free ones.
        session: Only blocks that the session of this id holds.
        limit: Most blocks shown; 0 shows all.
        as_json: Print one JSON object per block and line instead of a table.
    """
    with connect(connection) as client:
        page_size = min(limit + 1, 2**32 - 1) if limit > 0 else 0
        pages = client.list_blocks(states=state, session_id=session or 0, page_size=page_size)
        rows = (row for page in pages for row in _rows(page))
        shown = list(islice(rows, limit)) if limit > 0 else list(rows)
        is_cut = next(rows, None) is not None
    console = Console(highlight=False)
    if as_json:
        for row in shown:
            console.out(json.dumps(row), highlight=False)
        return
    console.print(_table(shown))
    if is_cut:
        console.print(f"more blocks follow the first {limit:,}; --limit 0 shows all", soft_wrap=True)


def _rows(page: BlockPage) -> Iterator[dict[str, Any]]:
    columns = zip(
        page.blocks.block_ids.tolist(),
        page.blocks.generations.tolist(),
        page.states.tolist(),
        page.reference_counts.tolist(),
        page.session_ids.tolist(),
        page.prefix_hashes,
        strict=True,
    )
    for block_id, generation, state, references, session_id, prefix_hash in columns:
        yield {
            "block_id": block_id,
            "generation": generation,
            "state": BlockState(state).name.lower(),
            "references": references,
            "session_id": session_id,
            "prefix_hash": prefix_hash.hex(),
        }


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table()
    for name in ("block", "generation", "state", "references", "session"):
        table.add_column(name, justify="left" if name == "state" else "right")
    table.add_column("prefix hash", overflow="fold")
    for row in rows:
        session = str(row["session_id"] or "")
        counts = str(row["block_id"]), str(row["generation"]), row["state"], str(row["references"])
        table.add_row(*counts, session, row["prefix_hash"])
    return table
