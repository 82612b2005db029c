"""Guarantee: the systemd unit is one that systemd takes, starts commands that are there, and confines them."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.commands import run
from deploy.server_settings import DEFAULTS, DOCKER, parsed

UNIT = DOCKER / "systemd" / "statepool.service"
TLS = UNIT.with_name("tls.conf")
MAX_EXPOSURE = 2.0
"""As `systemd-analyze security` counts, where 10 is a unit without any confinement."""

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """Writes the unit and its drop-in with the commands of this environment in place of /opt/statepool."""
    text = UNIT.read_text(encoding="utf-8").replace("/opt/statepool/bin", str(Path(sys.executable).parent))
    path = tmp_path / UNIT.name
    path.write_text(text, encoding="utf-8")
    drop_ins = tmp_path / f"{UNIT.name}.d"
    drop_ins.mkdir()
    shutil.copy(TLS, drop_ins)
    return path


def analyze(*arguments: str) -> str:
    """Asks systemd-analyze."""
    answer = subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout + answer.stderr


@needs_systemd
def test_unit(unit: Path) -> None:
    """Systemd finds no fault with it, not even an unknown key."""
    assert analyze("verify", "--recursive-errors=no", str(unit)) == ""


@needs_systemd
def test_confinement(unit: Path) -> None:
    """It is open to no more than it must be."""
    (exposure,) = re.findall(
        r"Overall exposure level for .*: ([0-9.]+)", analyze("security", "--offline=true", str(unit))
    )

    assert float(exposure) < MAX_EXPOSURE


def test_settings() -> None:
    """The server takes the settings beside it."""
    config = parsed({}, "--config", str(UNIT.with_name("statepool.toml")))

    assert config.memory == 4 * 2**30


def test_tls() -> None:
    """The server takes what the drop-in sets beside the settings, and is let out of this machine for it."""
    text = TLS.read_text(encoding="utf-8")
    variables = dict(re.findall(r'^Environment="?(\w+)=([^"\n]+)"?$', text, re.MULTILINE))
    config = parsed(variables, "--config", str(UNIT.with_name("statepool.toml")))

    assert len(variables) == text.count("Environment=")
    assert config.listen == [DEFAULTS.listen[0], "0.0.0.0:7443"]
    assert config.tls_cert is not None
    assert config.socket_access == "group"
    assert "IPAddressAllow=" in text


def test_commands_and_times() -> None:
    """Its waiting command is one of the client's; what it waits for, and draining, fits into systemd's patience."""
    text = UNIT.read_text(encoding="utf-8")
    (command,) = re.findall(r"^ExecStartPost=\S+/statepool (.*)$", text, re.MULTILINE)
    seconds = {key: float(value) for key, value in re.findall(r"^(Timeout\w+)=(\d+)$", text, re.MULTILINE)}

    assert run(*command.replace("300s", "0s").split(), "--target", "unix:/nowhere/s.sock").returncode == 1
    assert seconds["TimeoutStartSec"] > 300
    assert seconds["TimeoutStopSec"] > 2 * DEFAULTS.drain_timeout
