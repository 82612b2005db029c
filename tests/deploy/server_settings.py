"""What the server makes of settings, and what the image says of itself."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from statepool_server.config import ServerConfig

DOCKER = Path(__file__).parents[2] / "docker"
DEFAULTS = ServerConfig(model_config="")
SERVER = Path(sys.executable).with_name("statepool-server")
IMAGE_USER = int(re.findall(r"^USER (\d+):\d+$", (DOCKER / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)[0])


def parsed(variables: Mapping[str, str], *flags: str) -> ServerConfig:
    """Has the server read variables and flags, and returns its settings; a variable that it does not know is refused.

    Args:
        variables: Environment variables of the server.
        flags: Its flags.
    """
    known = {field.name for field in fields(ServerConfig)}
    assert not [name for name in variables if name.removeprefix("STATEPOOL_").lower() not in known]
    answer = subprocess.run(
        [SERVER, *flags, "--print-config"], capture_output=True, text=True, check=False, env=dict(variables)
    )
    assert answer.returncode == 0, answer.stderr
    settings: dict[str, Any] = {key.replace("-", "_"): value for key, value in tomllib.loads(answer.stdout).items()}
    return ServerConfig(**settings | ({"tp_ranks": tuple(settings["tp_ranks"])} if "tp_ranks" in settings else {}))
