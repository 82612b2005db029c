"""The ``statepool-server`` command."""

import sys


def main() -> None:
    """Runs the command line of this process and exits.

    Exit codes: 0 stopped by a signal after draining, 1 the server cannot run, 2 the command line is wrong, or the
    server is not installed, 3 stopped while copies stood still. An error is one line on standard error.
    """
    try:
        from statepool_server.cli.command import execute
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("statepool", "statepool_server"):
            raise
        print("statepool-server: the server is an extra: pip install 'statepool[server]'", file=sys.stderr)
        sys.exit(2)
    sys.exit(execute(sys.argv[1:]))
