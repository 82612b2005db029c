"""``statepool verify``: whether committed blocks hold the bytes that were committed."""

import json
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from statepool.cli.connect import HERE, Connection, connect
from statepool.cli.options import Seconds


def verify(
    *,
    connection: Connection = HERE,
    timeout: Seconds = 600.0,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> int:
    """Compare the bytes of every committed block with its checksum.

    Args:
        connection: The server.
        timeout: How long it may take.
        as_json: Print one JSON object.

    Returns:
        Exit code: 1 if any block was found changed, now or before, and not released since.
    """
    with connect(connection) as client:
        report = client.verify_integrity(timeout=timeout)
    found = report.condemned.block_ids.tolist()
    facts = {
        "verified_blocks": report.verified_blocks,
        "unverified_blocks": report.unverified_blocks,
        "condemned": found,
        "condemned_blocks": report.condemned_blocks,
    }
    console = Console(highlight=False)
    if as_json:
        console.out(json.dumps(facts), highlight=False)
    else:
        console.print(f"{report.verified_blocks:,} blocks verified, {report.unverified_blocks:,} have no checksum yet")
        console.print(f"{len(found):,} found changed: {found[:16]}; {report.condemned_blocks:,} in quarantine for it")
    return int(report.condemned_blocks > 0)
