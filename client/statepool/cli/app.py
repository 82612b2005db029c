"""The command tree, where its settings come from, and how its errors look."""

import sys
import tomllib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter
from cyclopts.config import Dict, Env

from statepool.cli.failure import CommandError
from statepool.errors import StatepoolError

app = App(
    name="statepool",
    help="Client of statepool, the service that owns the state-block pool of hybrid and state-space models. Sizes are "
    "written as 4GiB or 512MB, durations as 30s or 500ms.",
    version=lambda: version("statepool"),
    result_action="return_value",
    exit_on_error=False,
    print_error=False,
)

COMMANDS = {
    "blocks": "Show which blocks of a server are in use, by whom, and what they hold.",
    "demo": "Start a server on the CPU with a pool for a real model, load-test it over a Unix socket, and stop it.",
    "doctor": "Check a deployment: sockets, memory, devices, versions; and say how to mend what is wrong.",
    "health": "Ask a server whether it serves, by the standard health service.",
    "drain": "Take a server out of service: nothing begins any more, and what has begun may finish.",
    "info": "Show what a server is, what its pool holds, and how full it is.",
    "loadtest": "Drive a server with real traffic, verify its bytes, and report latencies.",
    "shapes": "Show what states a model keeps on one rank, how large a block is, and how many blocks fit.",
    "top": "Show how full a server is and what it does, as it goes on.",
    "verify": "Compare the bytes of every committed block with its checksum.",
}
"""Every subcommand and what it does; ``name`` is ``statepool.cli.name:name``, imported when it runs, and may have a
table ``[name]`` in the configuration file."""

for _name, _help in COMMANDS.items():
    app.command(f"statepool.cli.{_name}:{_name}", name=_name, help=_help)

_ENVIRONMENT_PREFIX = "STATEPOOL_"


@app.meta.default
def _launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    config: Annotated[Path | None, Parameter(env_var="STATEPOOL_CLIENT_CONFIG")] = None,
) -> object:
    """Runs a subcommand with settings from its flags, else STATEPOOL_* variables, else the configuration file.

    Args:
        tokens: The subcommand and its arguments.
        config: TOML file with one table per subcommand; unknown tables and keys are errors.
    """
    # The server reads the same prefix, so a variable that a command does not know is not an error; and a probe beside
    # a server that has STATEPOOL_CONFIG must not take that file for its own.
    app.config = [Env(_ENVIRONMENT_PREFIX, command=False)]
    if config is not None:
        app.config = [*app.config, Dict(read_settings(config), source=str(config))]
    return app(tokens)


def read_settings(path: Path) -> dict[str, object]:
    """Reads a configuration file.

    Raises:
        CommandError: The file cannot be read, is no TOML, or has anything but tables named after subcommands.
    """
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CommandError(f"{path}: {_reason(error)}", exit_code=2) from error
    for name, table in settings.items():
        if name not in COMMANDS or not isinstance(table, dict):
            known = ", ".join(f"[{command}]" for command in COMMANDS)
            raise CommandError(f"{path}: unknown key {name!r}; a file has the tables {known}", exit_code=2)
    return settings


def run(arguments: Sequence[str]) -> int:
    """Runs one command line.

    Args:
        arguments: What follows the program's name.

    Returns:
        The exit code.
    """
    try:
        result = app.meta(list(arguments))
    except CycloptsError as error:
        return _fail(error, 2)
    except CommandError as error:
        return _fail(error, error.exit_code)
    except StatepoolError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return 130
    return result if isinstance(result, int) else 0


def _fail(error: Exception, exit_code: int) -> int:
    print(f"statepool: {' '.join(str(error).split())}", file=sys.stderr)
    return exit_code


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
