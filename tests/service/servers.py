"""Real servers for tests: the installed command in a process of its own, on a Unix socket, with small blocks."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from statepool import Client
from statepool.security import PLAIN, Security

COMMAND = Path(sys.executable).with_name("statepool-server")
DEADLINE_SECONDS = 60.0
"""How long anything may take before a test gives up; nothing should come near it."""
BLOCK_TOKENS = 16
CAPACITY = 16
CONV_ROWS = 4
IMAGE_BYTES = 1024
"""Two temporal states of 128 bytes and two conv states of 64, each at a 256-byte boundary."""
KEPT = 3
"""Shared servers that outlive the module of tests that asked for them."""
CHUNK_BYTES = 300
"""Does not divide an image, so that every whole image takes four chunks, the last one short."""
SIGNS_OF_TROUBLE = ("Traceback", "failed unexpectedly", "copy failed", "background work died", "exception")


def custom_model(conv_shape: tuple[int, int] = (CONV_ROWS, 8)) -> dict[str, object]:
    """Describes two layers with a conv and a temporal state each; all conv rows but one may be speculative."""
    states: list[dict[str, object]] = []
    for layer in range(2):
        states += [
            {"name": f"layers.{layer}.conv", "layer": layer, "kind": "conv", "shape": conv_shape, "dtype": "bfloat16"},
            {"name": f"layers.{layer}.ssm", "layer": layer, "kind": "temporal", "shape": (2, 4, 4), "dtype": "float32"},
        ]
    return {"model_type": "custom", "states": states, "num_spec": min(conv_shape) - 1}


def write_model(folder: Path, conv_shape: tuple[int, int] = (CONV_ROWS, 8)) -> Path:
    """Writes the model's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(custom_model(conv_shape)), encoding="utf-8")
    return path


def arguments(model: Path, target: str, state_dir: Path, *flags: str) -> list[str]:
    """Writes a command line for the pool that every test expects, with a test's own flags, which win."""
    settings = {
        "--model-config": str(model),
        "--tp-size": "2",
        "--blocks": str(CAPACITY + 1),
        "--block-tokens": str(BLOCK_TOKENS),
        "--min-ttl": "50ms",
        "--max-chunk-bytes": str(CHUNK_BYTES),
        "--log-format": "json",
        "--listen": target,
        "--state-dir": str(state_dir),
    }
    settings |= dict(zip(flags[::2], flags[1::2], strict=True))
    return [word for setting in settings.items() for word in setting if word]  # a flag without a value has an empty one


@contextlib.contextmanager
def fast_folder() -> Iterator[Path]:
    """Makes a private folder in memory where the machine has one, and removes it."""
    parent = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 — mkdtemp makes a private folder in it
    folder = Path(tempfile.mkdtemp(prefix="statepool-test-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def until(condition: Callable[[], bool], what: str, seconds: float = DEADLINE_SECONDS) -> None:
    """Waits for something that no event tells of.

    Raises:
        AssertionError: It did not come about in time.
    """
    pause, deadline = threading.Event(), time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain for {what}"
        pause.wait(0.005)


class Server:
    """A server process.

    Attributes:
        target: Where clients connect.
        socket: Path of its Unix socket.
        state_dir: Folder of its arenas.
        process: The process.
    """

    def __init__(
        self,
        folder: Path,
        *flags: str,
        listen: str = "",
        security: Security = PLAIN,
        conv_shape: tuple[int, int] = (CONV_ROWS, 8),
        environment: Mapping[str, str] | None = None,
        under: Sequence[str] = (),
    ):
        """Starts a process; it may not answer yet.

        Args:
            folder: Empty folder for everything that it writes.
            flags: Flags and their values; they win over those of `arguments`.
            listen: Address; empty: a Unix socket in the folder.
            security: How the test's own process connects.
            conv_shape: Shape of the conv states in one block.
            environment: Variables beside those of the test's own process.
            under: Command that becomes the server's, in another network for one.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.socket = folder / "s.sock"
        self.target = listen or f"unix:{self.socket}"
        self.state_dir = folder / "state"
        self._security = security
        self._log = folder / "log"
        self._model = write_model(folder, conv_shape)
        self._flags = flags
        self._environment = os.environ | dict(environment or {})
        self._under = under
        self.start()

    def start(self, *flags: str) -> None:
        """Starts the process, again after it was killed, with flags that win over those before; see `__init__`."""
        self._told = False
        self._flags += flags
        command = [*self._under, str(COMMAND), *arguments(self._model, self.target, self.state_dir, *self._flags)]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(command, env=self._environment, stderr=log)

    def flag(self, name: str) -> str:
        """Returns the value of a flag with which it was started."""
        return dict(zip(self._flags[::2], self._flags[1::2], strict=True))[name]

    def kill(self) -> None:
        """Ends the process as a crash does."""
        self.process.kill()
        self.wait()

    @property
    def log(self) -> str:
        """What the process has written to its standard error so far."""
        return self._log.read_text(encoding="utf-8")

    def wait_until_ready(self) -> "Server":
        """Waits until its health service says so."""
        until(self._is_serving_or_dead, "the server to serve")
        assert self.process.poll() is None, f"the server ended with {self.process.returncode}: {self.log}"
        return self

    def client(self, timeout: float = DEADLINE_SECONDS) -> Client:
        """Makes a client."""
        return Client(self.target, timeout=timeout, tls=self._security.tls, token=self._security.token)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Has the process stand still for a while."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def terminate(self, signal_number: int = signal.SIGTERM) -> None:
        """Asks the process, once, to drain and end."""
        if not self._told:
            self.process.send_signal(signal_number)
        self._told = True

    def wait(self) -> int:
        """Waits for the end of the process and returns its exit code."""
        return self.process.wait(DEADLINE_SECONDS)

    def stop(self) -> None:
        """Ends the process and proves that nothing went wrong inside it."""
        self.terminate()
        try:
            code = self.wait()
        finally:
            self.process.kill()
        assert code == 0, f"the server ended with {code}: {self.log}"
        assert not [sign for sign in SIGNS_OF_TROUBLE if sign in self.log], self.log

    def _is_serving_or_dead(self) -> bool:
        if self.process.poll() is not None:
            return True
        with self._channel() as channel, contextlib.suppress(grpc.RpcError):
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=1.0)
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
        return False

    def _channel(self) -> grpc.Channel:
        credentials = self._security.credentials
        return grpc.secure_channel(self.target, credentials) if credentials else grpc.insecure_channel(self.target)


class Servers:
    """Starts servers, shares those with equal flags, and ends all of them.

    A server takes a sixth of a gigabyte and a little time even when it is idle, so no more live than are in use.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shared: dict[tuple[object, ...], Server] = {}  # least recently asked for first
        self._started: list[Server] = []

    def shared(
        self,
        *flags: str,
        listen: str = "",
        security: Security = PLAIN,
        conv_shape: tuple[int, int] = (CONV_ROWS, 8),
    ) -> Server:
        """Returns a running server with these flags, which other tests use too: leave it as it was."""
        key = (*flags, listen, conv_shape)
        server = self._shared.pop(key, None)
        if server is None:
            server = self.start(*flags, listen=listen, security=security, conv_shape=conv_shape).wait_until_ready()
        self._shared[key] = server
        return server

    def start(
        self,
        *flags: str,
        listen: str = "",
        security: Security = PLAIN,
        conv_shape: tuple[int, int] = (CONV_ROWS, 8),
        environment: Mapping[str, str] | None = None,
    ) -> Server:
        """Starts a server for one test, which may do to it what it likes; it may not answer yet."""
        folder = self._folder / str(len(self._started))
        server = Server(
            folder, *flags, listen=listen, security=security, conv_shape=conv_shape, environment=environment
        )
        self._started.append(server)
        return server

    def log_ends(self, most_chars: int = 4000) -> Iterator[tuple[str, str]]:
        """Yields the target and the end of the log of each server."""
        for server in self._started:
            yield server.target, server.log[-most_chars:]

    def end_of_test(self) -> None:
        """Ends the servers that nobody shares."""
        self._stop([server for server in self._started if server not in self._shared.values()])

    def end_of_module(self) -> None:
        """Ends all servers but those that were shared last."""
        for key in list(self._shared)[:-KEPT]:
            self._stop([self._shared.pop(key)])

    def stop(self) -> None:
        """Ends the servers that are still running."""
        self._stop(self._started)

    def _stop(self, servers: Iterable[Server]) -> None:
        """Ends servers, if they are still running; notes the ends of all logs where one does not end well."""
        try:
            with contextlib.ExitStack() as stack:
                for server in servers:
                    if server.process.returncode is None:
                        server.terminate()
                        stack.callback(server.stop)
        except BaseException as error:
            for target, log in self.log_ends():
                error.add_note(f"log of {target}:\n{log}")
            raise
