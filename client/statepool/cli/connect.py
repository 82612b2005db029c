"""How commands that ask a server connect to it."""

from collections.abc import Iterator
from contextlib import contextmanager

from statepool import Client
from statepool.channel import DEFAULT_TARGET
from statepool.cli.failure import CommandError
from statepool.errors import DeadlineExceededError, UnavailableError

__all__ = ["DEFAULT_TARGET", "connect"]


@contextmanager
def connect(target: str) -> Iterator[Client]:
    """Opens a client for a command.

    Args:
        target: Where the server listens.

    Yields:
        The client.

    Raises:
        CommandError: No server answers there in time, or the target is remote, which needs TLS.
    """
    try:
        client = Client(target)
    except ValueError as error:
        raise CommandError(str(error), exit_code=2) from error
    with client:
        try:
            yield client
        except (UnavailableError, DeadlineExceededError) as error:
            if error.reason:
                raise  # a server does answer, and says why not
            raise CommandError(f"no server answers at {target}: {error}") from error
