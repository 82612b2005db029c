"""Guarantee: device memory goes to other processes through NVIDIA's bindings as it must, down to the driver's calls.

The driver is simulated (`simulated_cuda/driver.c`); the bindings, the server's attach socket and the processes are
real. Whether a real driver agrees is for tests/gpu to tell.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import pytest

from service.servers import DEADLINE_SECONDS, fast_folder, until, write_model
from statepool import Client, FeatureUnavailableError
from statepool.torch.cuda_memory import round_up

HERE = Path(__file__).with_name("simulated_cuda")
COMPILER = shutil.which("cc")
GRANULARITY = 2**21
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler to build the simulated driver with")
pytestmark = pytest.mark.timeout(300)


class Process:
    """A script whose lines are JSON."""

    def __init__(self, script: str, *arguments: str, environment: Mapping[str, str]) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, str(HERE / script), *arguments],
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def hear(self) -> Any:
        """Waits for a line."""
        assert self.popen.stdout is not None
        return json.loads(self.popen.stdout.readline())

    def ask(self, verb: str, *arguments: int) -> Any:
        """Sends a line and waits for the answer."""
        self.send(verb, *arguments)
        return self.hear()

    def send(self, verb: str, *arguments: int) -> None:
        """Sends a line."""
        assert self.popen.stdin is not None
        self.popen.stdin.write(json.dumps([verb, *arguments]) + "\n")
        self.popen.stdin.flush()

    def wait(self) -> int:
        """Waits for its end and returns how it ended."""
        return self.popen.wait(DEADLINE_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        with contextlib.suppress(BrokenPipeError):  # what it was sent last may have ended it
            self.popen.communicate(timeout=DEADLINE_SECONDS)


@pytest.fixture(scope="module")
def driver() -> Iterator[Path]:
    """Builds the driver; gives its folder."""
    with fast_folder() as folder:
        library = folder / "libcuda.so.1"
        command = [str(COMPILER), "-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-o", str(library)]
        subprocess.run([*command, str(HERE / "driver.c"), "-ldl"], check=True)
        yield folder


def sees(driver: Path, devices: str) -> dict[str, str]:
    """Writes the environment of a process that sees these devices, in this order."""
    return {"LD_LIBRARY_PATH": str(driver), "SIMULATED_CUDA_DEVICES": devices}


@pytest.fixture(scope="module")
def target(driver: Path) -> Iterator[str]:
    """Runs a server that sees devices 1 and 2 and whose first rank lies on 2."""
    with fast_folder() as folder:
        target = f"unix:{folder / 's.sock'}"
        arguments = (str(write_model(folder)), target, str(folder / "state"))
        with Process("server.py", *arguments, environment=sees(driver, "12")) as server:
            assert server.hear() == "ready"
            yield target
        assert server.popen.returncode == 0


@pytest.fixture
def client(target: str) -> Iterator[Client]:
    """Connects to the server."""
    with Client(target, timeout=DEADLINE_SECONDS) as client:
        yield client


@pytest.mark.parametrize(("nbytes", "rounded"), [(1, 512), (512, 512), (513, 1024), (0, 0), (2**40 + 1, 2**40 + 512)])
def test_sizes_are_rounded_up(nbytes: int, rounded: int) -> None:
    """A mapping takes whole pages of its device."""
    assert round_up(nbytes, 512) == rounded


@needs_compiler
def test_allocations(driver: Path) -> None:
    """Memory is exported, imported, mapped twice and given back; what cannot be is refused with the driver's reason."""
    with Process("allocations.py", environment=sees(driver, "12")) as process:
        told = process.hear()

    uuid = "GPU-02020202-0202-0202-0202-020202020202"
    assert told["nbytes"] == 3 * GRANULARITY
    assert told["inheritable"] is False
    assert told["seen"] == 7
    assert told["interface"] == {"version": 3, "shape": [5_000_000], "typestr": "|u1", "data": None, "strides": None}
    assert told["mapped"] == 2
    assert told["left"] == [0, 1], "what is left is the handle of the last allocation"
    assert told["uuid"] == uuid
    assert told["found"] == [0, 1]
    assert told["too_large"] == ["cuMemCreate: CUDA_ERROR_OUT_OF_MEMORY", "CUDA_ERROR_OUT_OF_MEMORY"]
    assert told["no_device"] == ["cuDeviceGet: CUDA_ERROR_INVALID_DEVICE", "CUDA_ERROR_INVALID_DEVICE"]
    assert "does not see GPU-09090909-0909-0909-0909-090909090909, only GPU-010101" in told["not_seen"][0]
    assert told["no_memory"][1] == "CUDA_ERROR_INVALID_VALUE"
    assert "does not hold" in told["too_small"][0]


@needs_compiler
def test_a_device_that_cannot_export(driver: Path) -> None:
    """It is told apart from one without memory, so that a server can do without."""
    program = (
        "from statepool.torch.cuda_memory import CudaAllocation as A\n"
        "try: A.create(0, 1)\nexcept RuntimeError as e: print(e.code, e)"
    )
    environment = os.environ | sees(driver, "1") | {"SIMULATED_CUDA_NO_EXPORT": "1"}

    told = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, env=environment
    ).stdout

    assert told.startswith("CUDA_ERROR_NOT_SUPPORTED device 0 cannot export memory")


@needs_compiler
def test_a_worker_that_counts_devices_otherwise(driver: Path, target: str, client: Client) -> None:
    """It finds the device by its UUID, sees and changes the server's bytes, and is cut off when it detaches."""
    image_bytes = client.get_pool().layout.block.image_bytes
    with Process("worker.py", target, "0", environment=sees(driver, "32")) as worker:
        ordinal, nbytes = worker.hear()
        with client.create_session(60.0) as session:
            blocks = session.allocate_blocks(1)
            offset = int(blocks.block_ids[0]) * image_bytes
            session.write_blocks(blocks, b"\5" * image_bytes)
            seen = worker.ask("peek", offset)
            worker.ask("poke", offset, 6)
            image = b"".join(chunk.data for chunk in session.read_blocks(blocks))
        detached = worker.ask("detach", 0)
        left = client.list_attachments()
        worker.send("peek", offset)
        ended = worker.wait()

    assert (ordinal, nbytes) == (1, client.get_pool().layout.nbytes)
    assert (seen, image[0], image[1]) == (5, 6, 5)
    assert detached
    assert left == []
    assert ended == -signal.SIGSEGV, "the mapping is gone, its addresses are not"


@needs_compiler
def test_a_reader(driver: Path, target: str, client: Client) -> None:
    """It reads; what it writes faults, and its death is no harm to others."""
    with Process("worker.py", target, "1", environment=sees(driver, "2")) as worker:
        ordinal, _ = worker.hear()
        seen = worker.ask("peek", 0)
        worker.send("poke", 0, 1)
        ended = worker.wait()

    assert (ordinal, seen) == (0, 0)
    assert ended == -signal.SIGSEGV
    until(lambda: client.list_attachments() == [], "the reader to be taken for dead")


@needs_compiler
@pytest.mark.parametrize(
    ("devices", "why"),
    [("13", "does not see GPU-02020202-0202-0202-0202-020202020202"), ("", "no CUDA driver")],
)
def test_a_worker_without_the_device(driver: Path, target: str, client: Client, devices: str, why: str) -> None:
    """It is told why it cannot attach, and leaves no attachment behind."""
    with Process("worker.py", target, "0", environment=sees(driver, devices) if devices else {}) as worker:
        name, message = worker.hear()

    assert name == FeatureUnavailableError.__name__
    assert why in message
    until(lambda: client.list_attachments() == [], "the worker to be taken off the list")


@needs_compiler
def test_a_rank_that_cannot_be_shared(client: Client) -> None:
    """Nobody gets a token for it."""
    with pytest.raises(FeatureUnavailableError, match="cannot be attached") as caught:
        client.attach_pool(rank_index=1)
    assert caught.value.field == "rank_index"
