"""Guarantee: the image as it is built serves, as a user without rights, on a root file system that it never writes."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from deploy.commands import Report
from image.conftest import Container
from service.servers import DEADLINE_SECONDS
from statepool import Client
from statepool.doctor.listener import Listener

MAX_SHIPPED_BYTES = 1.2 * 2**30
"""Most of /opt/statepool for the CPU, most of which is PyTorch."""

pytestmark = pytest.mark.usefixtures("server")


def test_user(container: Container) -> None:
    """The server runs as the image's user, who is not the superuser, and nobody else may enter its folder."""
    assert Listener.at(container.sockets / "statepool.sock").uid == 10001
    assert (container.root / "run/statepool").stat().st_mode & 0o7777 == 0o750


def test_health_check(container: Container) -> None:
    """The image's own health check passes beside the server."""
    check = container.config["Healthcheck"]["Test"]

    assert check[0] == "CMD"
    assert container.run(*check[1:]) == "SERVING\n"


def test_doctor(container: Container) -> None:
    """In the server's container the doctor sees its arenas and finds nothing wrong."""
    report = json.loads(container.run("statepool", "doctor", "--json"))

    assert report["is_well"]
    assert {finding["check"] for finding in report["findings"]} >= {"socket", "user", "memory limit", "state dir"}


def test_doctor_of_another_user(container: Container) -> None:
    """From outside, as another user, the same server can be called, but a worker could not attach: a warning."""
    report = Report("--target", container.target)

    assert (report.exit_code, report.verdict("user")) == (0, "warning")
    assert "10001" in report.findings["user"]["detail"]
    assert report.verdict("state dir") == "ok"


def test_load(container: Container) -> None:
    """Engines in another process of the image are served, and every byte is as it must be."""
    flags = ["--duration", "3s", "--warmup", "0s", "--verify", "0.5", "--json", "-"]

    report = json.loads(container.run("statepool", "loadtest", *flags))

    assert report["errors"] == {}
    assert report["mismatches"] == []
    assert report["verified"] > 0


def test_from_outside(container: Container) -> None:
    """A client on the machine reaches the server by the shared folder."""
    with Client(container.target) as client, client.create_session(10.0) as session:
        assert len(session.allocate_blocks(4)) == 4
        assert client.get_pool().tp_ranks == (0, 1)


def test_content(container: Container) -> None:
    """The image has no pip, no sources, and stays small."""
    shipped = container.root / "opt/statepool"
    files = [path for path in shipped.rglob("*") if path.is_file() and not path.is_symlink()]

    assert not (container.root / "src").exists()
    assert not [path for path in files if path.name in ("pip", "pip3") or path.suffix == ".whl"]
    if not list(shipped.glob("lib/python3*/site-packages/triton")):
        assert sum(path.stat().st_size for path in files) < MAX_SHIPPED_BYTES


def test_end(container: Container, server: "subprocess.Popen[str]") -> None:
    """SIGTERM drains and ends with 0; nothing has been written but to the folders that are shared. Runs last."""
    with Client(container.target) as client:
        info = client.get_server_info()

    os.kill(info.pid, signal.SIGTERM)
    output, _ = server.communicate(timeout=DEADLINE_SECONDS)

    assert server.returncode == 0, output
    assert "Traceback" not in output
    assert _changed_since(container.root, container.created) == []
    assert list(container.sockets.iterdir()) == []


def _changed_since(root: Path, moment: float) -> list[Path]:
    apart = {"proc", "sys", "dev", "etc", "run"}  # bound, or written, by who runs the container
    tops = [top for top in root.iterdir() if top.name not in apart and not top.is_symlink()]
    files = (path for top in tops for path in top.rglob("*") if not path.is_dir())
    return [path for path in files if path.lstat().st_mtime > moment]
