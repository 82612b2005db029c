"""Configuration files: the reader's own, and those that come with the package."""

import json
from pathlib import Path

from statepool.models.parse import parse_model_config
from statepool.models.states import ModelStates

_BUNDLED = Path(__file__).parent.parent / "data" / "models"


def bundled_models() -> dict[str, Path]:
    """Finds the configuration files of the package: one real model of each supported kind, by name."""
    return {path.stem: path for path in sorted(_BUNDLED.glob("*.json"))}


def find_model_config(name: str) -> Path:
    """Finds a configuration by what a user calls it.

    Args:
        name: A bundled model, else a file or a model's folder. A path that is named as a bundled model is written with
            its folder: ``./mamba2``.

    Raises:
        ValueError: Neither.
    """
    bundled = bundled_models()
    path = bundled.get(name, Path(name))
    if not path.exists():
        raise ValueError(f"{name}: no such file, nor a bundled model: {', '.join(bundled)}")
    return path


def read_model_config(path: str | Path) -> ModelStates:
    """Reads a ``config.json``, or the one in a model's folder.

    Args:
        path: The file, or the folder that holds a ``config.json``.

    Returns:
        As `parse_model_config`.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no JSON object, or `parse_model_config` refuses it; the message starts with the path.
    """
    file = Path(path)
    file = file / "config.json" if file.is_dir() else file
    try:
        config = json.loads(file.read_bytes())
        if not isinstance(config, dict):
            raise ValueError("must be a JSON object")
        return parse_model_config(config)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
