"""The built image, run by buildah without an engine: `make image` builds it and runs these tests."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.servers import DEADLINE_SECONDS, until
from statepool.cli.connect import Connection
from statepool.cli.health import ask_health

SERVER_FLAGS = (
    *("--model-config", "falcon_h1", "--tp-size", "8", "--tp-ranks", "0,1"),
    *("--memory", "128MiB", "--block-tokens", "64", "--num-spec", "2"),
)


class Container:
    """A container of the image, whose processes share the sockets' folder and tmpfs with this machine.

    Attributes:
        config: The image's configuration.
        root: Its root file system, seen from outside.
        sockets: What it has at /run/statepool.
        created: When it was made, as file systems count.
    """

    def __init__(self, image: str, folder: Path) -> None:
        """Makes a container; nothing runs in it yet."""
        self._name = _buildah("from", "--pull-never", image)
        self.config: dict[str, Any] = json.loads(_buildah("inspect", self._name))["Docker"]["config"]
        self.root = Path(_buildah("mount", self._name))
        self.sockets, self._shm = folder / "sockets", folder / "shm"
        folder.chmod(0o755)
        user, group = map(int, self.config["User"].split(":"))
        for shared in (self.sockets, self._shm):
            shared.mkdir(mode=0o700)
            os.chown(shared, user, group)
        self.created = self.sockets.stat().st_mtime

    @property
    def target(self) -> str:
        """Where the server is reached from outside."""
        return f"unix:{self.sockets / 'statepool.sock'}"

    def start(self, *command: str) -> "subprocess.Popen[str]":
        """Starts a command as the image's user."""
        mounts = ["--volume", f"{self.sockets}:/run/statepool", "--volume", f"{self._shm}:/dev/shm"]
        return subprocess.Popen(
            ["buildah", "run", "--isolation", "chroot", *mounts, self._name, "--", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *command: str) -> str:
        """Runs a command to its end and returns what it has written.

        Raises:
            AssertionError: It ended with an error.
        """
        process = self.start(*command)
        output, _ = process.communicate(timeout=DEADLINE_SECONDS)
        assert process.returncode == 0, output
        return output

    def remove(self) -> None:
        """Removes the container."""
        _buildah("umount", self._name)
        _buildah("rm", self._name)


@pytest.fixture(scope="session")
def container() -> Iterator[Container]:
    """Makes a container of the image that is named by STATEPOOL_IMAGE."""
    image = os.environ.get("STATEPOOL_IMAGE")
    assert image, "STATEPOOL_IMAGE is not set: `make image` builds an image and runs these tests"
    folder = Path(tempfile.mkdtemp(prefix="statepool-image-", dir="/dev/shm"))
    container = Container(image, folder)
    try:
        yield container
    finally:
        container.remove()
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def server(container: Container) -> Iterator["subprocess.Popen[str]"]:
    """Runs the server as the image's entry point does."""
    process = container.start(*container.config["Entrypoint"], *SERVER_FLAGS)
    try:
        until(lambda: _is_ready(process, container.target), "the server in the image to serve")
        assert process.poll() is None, process.communicate()[0]
        yield process
    finally:
        process.kill()


def _is_ready(process: "subprocess.Popen[str]", target: str) -> bool:
    return process.poll() is not None or ask_health(Connection(target=target), "", 1.0) == "SERVING"


def _buildah(*arguments: str) -> str:
    answer = subprocess.run(["buildah", *arguments], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()
