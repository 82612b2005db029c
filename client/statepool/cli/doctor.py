"""``statepool doctor``: what is wrong with a deployment, and how to mend it."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from statepool.cli.connect import HERE, Connection
from statepool.cli.health import ask_health
from statepool.cli.options import Addresses, ByteSize, Seconds, split_list
from statepool.doctor import Deployment, Finding, Verdict, Wanted, examine

_STYLES = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.FAILURE: "bold red"}


def doctor(
    *,
    connection: Connection = HERE,
    memory: ByteSize | None = None,
    tp_size: int = 1,
    tp_ranks: str | None = None,
    device: str = "cpu",
    state_dir: Path | None = None,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    tls_client_ca: Path | None = None,
    admin_listen: Addresses | None = None,
    timeout: Seconds = 3.0,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> int:
    """Check a deployment from where this command runs, and say how to mend what is wrong.

    Run it where the server runs to check its memory, devices and folders, and where a worker runs to check what that
    can reach. The server's settings need to be given only while it is not running; what its environment variables say
    is read from there.

    Exit codes: 0 nothing is wrong (there may be warnings), 1 something is.

    Args:
        connection: The server.
        memory: Bytes of each rank's arena, as for the server.
        tp_size: Tensor-parallel size of the model, as for the server.
        tp_ranks: Ranks that the server holds, such as 0,1. Default: all.
        device: Where its arenas are: cpu, or cuda:N[,M…].
        state_dir: Its folder of host arenas. Default: /dev/shm/statepool-UID.
        tls_cert: PEM file of its certificate.
        tls_key: PEM file of its key.
        tls_client_ca: PEM file of the authority of its callers' certificates.
        admin_listen: Where it listens for operators; may be repeated.
        timeout: How long the server may take for an answer.
        as_json: Print one JSON object instead of a table.
    """
    ranks = len(split_list(tp_ranks)) if tp_ranks else tp_size
    folder = None if state_dir is None else state_dir.absolute()
    wanted = Wanted(memory, ranks, device, folder, tls_cert, tls_key, tls_client_ca)
    health = ask_health(connection, "", timeout)
    admin = {at: ask_health(connection.at(at), "", timeout) for at in admin_listen or ()}
    findings = examine(Deployment(connection.target, health, wanted, timeout, connection.security(), admin))
    is_well = all(finding.verdict is not Verdict.FAILURE for finding in findings)
    console = Console(highlight=False)
    if as_json:
        facts = {"is_well": is_well, "findings": [asdict(finding) for finding in findings]}
        console.out(json.dumps(facts), highlight=False)
    else:
        console.print(_table(findings))
    return 0 if is_well else 1


def _table(findings: list[Finding]) -> Table:
    table = Table("", "check", "found, and what to do")
    for finding in findings:
        style = _STYLES[finding.verdict]
        found = Text(finding.detail)
        if finding.remedy:
            found.append(f"\n→ {finding.remedy}", style=style)
        table.add_row(Text(finding.verdict, style=style), finding.check, found)
    return table
