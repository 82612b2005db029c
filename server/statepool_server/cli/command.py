"""The command line: where settings come from, and how its errors look."""

import asyncio
import faulthandler
import os
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import structlog
from cyclopts import App, CycloptsError, MissingArgumentError, Parameter
from cyclopts.config import Dict, Env

from statepool_server.config import VARIABLES_PREFIX, ServerConfig, unknown_variables
from statepool_server.files import cause
from statepool_server.logs import configure_logging

_log = structlog.get_logger("statepool.cli")

app = App(
    name="statepool-server",
    help="Owns the state-block pool of a hybrid or state-space model and serves it over gRPC. Sizes are written as "
    "4GiB or 512MB, durations as 30s or 500ms.",
    version=lambda: version("statepool"),
    result_action="return_value",
    exit_on_error=False,
    print_error=False,
)


@app.meta.default
def _launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    config: Annotated[Path | None, Parameter(env_var="STATEPOOL_CONFIG")] = None,
) -> object:
    """Reads settings from flags, else STATEPOOL_* variables, else the configuration file.

    Args:
        tokens: Flags of the server.
        config: TOML file whose keys are the names of the flags; unknown keys are errors.
    """
    app.config = [Env(VARIABLES_PREFIX, command=False)]
    if config is not None:
        app.config = [*app.config, Dict(_read_settings(config), source=str(config))]
    return app(tokens)


@app.default
def _serve(settings: ServerConfig, *, print_config: Annotated[bool, Parameter(negative=())] = False) -> int:
    """Serves until SIGTERM or SIGINT, then drains and exits with 0.

    Args:
        settings: The settings.
        print_config: Print the settings as TOML and exit.
    """
    if print_config:
        print(_to_toml(settings), end="")
        return 0
    configure_logging(settings.log_level, settings.log_format)
    for variable, resembled in unknown_variables(os.environ).items():
        _log.warning("ignores a variable that no setting has", variable=variable, resembles=resembled)
    faulthandler.enable()  # a fatal signal, SIGABRT by an operator's hand included, shows the stacks of all threads
    from statepool_server.app import run  # half a second that --help and --print-config need not spend

    asyncio.run(run(settings))
    return 0


def execute(arguments: Sequence[str]) -> int:
    """Runs one command line.

    Args:
        arguments: What follows the program's name.

    Returns:
        The exit code.
    """
    try:
        result = app.meta(list(arguments))
    except MissingArgumentError as error:
        missing = error.argument
        return _fail(error if missing is None or missing.tokens else f"{missing.name} is required", 2)
    except CycloptsError as error:
        return _fail(error, 2)
    except (OSError, ValueError, RuntimeError) as error:
        return _fail(error, 1)
    return result if isinstance(result, int) else 0


def _fail(error: Exception | str, exit_code: int) -> int:
    print(f"statepool-server: {' '.join(str(error).split())}", file=sys.stderr)
    return exit_code


def _read_settings(path: Path) -> dict[str, object]:
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"--config {path}: {cause(error)}") from error
    known = {field.name.replace("_", "-") for field in fields(ServerConfig)}
    for key in settings:
        if key.replace("_", "-") not in known:
            raise ValueError(f"--config {path}: unknown key {key!r}")
    return settings


def _to_toml(settings: ServerConfig) -> str:
    """Writes every setting; one that is not set is a comment, since TOML has no null."""
    lines = []
    for field in fields(settings):
        value = getattr(settings, field.name)
        key = field.name.replace("_", "-")
        lines.append(f"# {key} is not set" if value is None else f"{key} = {_toml_value(value)}")
    return "\n".join(lines) + "\n"


def _toml_value(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml_value(item) for item in value)}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
