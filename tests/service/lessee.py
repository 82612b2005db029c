"""A process that holds a session; a test stops it for longer than its lease lasts, and has it make one call.

Arguments: target, ttl in seconds. It says "ready", waits for a line, allocates a block and steps, and says as JSON what
came of that.
"""

import json
import sys
from collections.abc import Callable

from statepool import Client, Session, StatepoolError


def main(target: str, ttl: str) -> None:
    """Holds a session until it is told to use it."""
    lost: list[str] = []

    def on_lost(_session: Session, error: StatepoolError) -> None:
        lost.append(error.reason)

    with (
        Client(target) as client,
        client.create_session(float(ttl), on_lost=on_lost) as session,
        session.scheduler() as scheduler,
    ):
        print("ready", flush=True)
        sys.stdin.readline()
        print(json.dumps([_reason(session.allocate_blocks, 1), _reason(scheduler.step), lost]), flush=True)


def _reason(call: Callable[..., object], *arguments: int) -> str:
    try:
        call(*arguments)
    except StatepoolError as error:
        return f"{error.reason}: {error.message}"
    return ""


if __name__ == "__main__":
    main(*sys.argv[1:])
