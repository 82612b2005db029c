"""The ``statepool`` command.

Nothing here imports torch or the server, and each subcommand's module is imported only when it runs, so that
``statepool shapes`` needs no grpc.
"""

import sys


def main() -> None:
    """Runs the command line of this process and exits.

    Exit codes: 0 done, 1 the command failed, 2 the command line or its configuration is wrong, 130 interrupted. An
    error is one line on standard error.
    """
    try:
        from statepool.cli.app import run
    except ModuleNotFoundError as error:
        if error.name != "cyclopts":
            raise
        print("statepool: the command line is an extra: pip install 'statepool[cli]'", file=sys.stderr)
        sys.exit(1)
    sys.exit(run(sys.argv[1:]))
