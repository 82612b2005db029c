"""``statepool drain``: takes a server out of service."""

from statepool.cli.connect import HERE, Connection, connect
from statepool.cli.options import Seconds


def drain(*, connection: Connection = HERE, grace: Seconds = 10.0, stop: bool = False) -> int:
    """Take a server out of service: nothing begins any more, and what has begun may finish.

    The exit code is 0 when every sequence has finished, 1 when some are left after the grace time.

    Args:
        connection: The server.
        grace: How long to wait for sequences to finish.
        stop: End the server when they have, or when the grace time is over, as SIGTERM does.
    """
    with connect(connection) as client:
        left = client.drain(grace, stop=stop)
    if left.is_drained:
        print(f"drained; {left.sessions} sessions are open")
    else:
        print(f"draining; {left.sequences} sequences of {left.sessions} sessions have not finished")
    return 0 if left.is_drained else 1
