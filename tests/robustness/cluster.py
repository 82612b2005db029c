"""The processes of a run: a server, a proxy in front of it for each scheduler, schedulers and workers."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from robustness.history import History
from robustness.scenario import RANKS, Scenario, write_model
from service.proxy import Proxy
from service.servers import DEADLINE_SECONDS, Server, until
from statepool import Client
from statepool_server.failpoints import VARIABLE

START_SECONDS = 300.0
"""How long workers may take to start; those that copy import torch, and the machine may have more to do."""
_TESTS = Path(__file__).parent.parent


class Member:
    """A process that is started again when it has died.

    Attributes:
        name: Its name in the history.
        process: The process that has its place now.
    """

    def __init__(self, name: str, command: list[str], environment: Mapping[str, str], log: Path) -> None:
        """Starts the process.

        Args:
            name: Its name in the history.
            command: How it is started.
            environment: Its variables.
            log: Where its standard error goes.
        """
        self.name = name
        self._command = command
        self._environment = environment
        self._log = log
        self.process = self._start()

    def revive(self) -> bool:
        """Starts it again if it has died; returns whether it had."""
        if self.process.poll() is None:
            return False
        self.process = self._start()
        return True

    def replace(self) -> "subprocess.Popen[bytes]":
        """Starts another process in its place; returns the former, which goes on."""
        former, self.process = self.process, self._start()
        return former

    @property
    def log(self) -> str:
        """What its processes have written to their standard error."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def _start(self) -> "subprocess.Popen[bytes]":
        with self._log.open("ab") as log:
            return subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=log)


class Cluster:
    """All processes of one run; a context manager that ends them.

    Attributes:
        scenario: What the run is.
        folder: Where it writes.
        model: The model's config.json.
        history: The run's own part of the history: what was done to whom.
        server: The server.
        proxies: One in front of the server for each scheduler.
        schedulers: The scheduler processes.
        workers: The worker processes, those of rank 0 first.
    """

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        """Starts everything, and waits until the workers are attached."""
        self.scenario = scenario
        self.folder = folder
        self.history = History(folder, "run")
        self.model = write_model(folder)
        self._clock = folder / "clock"
        self.jump_clock(0)
        self._later: list[threading.Timer] = []
        self._former: list[subprocess.Popen[bytes]] = []
        self._ends = contextlib.ExitStack()
        self.schedulers: list[Member] = []
        self.workers: list[Member] = []
        self._is_armed = False
        self.server = self._new_server()
        try:
            self._serve()
            self._start_all()
        except BaseException:
            self._end()
            raise

    def kill_server(self) -> None:
        """Kills the server in whatever it is doing; `restart_server` starts another."""
        self.history.note("killing", process="server")
        self.server.kill()

    def restart_server(self, failpoints: str = "") -> None:
        """Starts another server in place of one that has ended.

        Args:
            failpoints: Where it will fail, see `statepool_server.failpoints`.
        """
        self._is_armed = bool(failpoints)
        self.server = self._new_server(failpoints)
        self._serve()

    def client(self) -> Client:
        """Makes a client that speaks to the server without a proxy."""
        return self.server.client(timeout=10.0)

    def kill(self, member: Member) -> None:
        """Kills a process, whatever it does."""
        self.history.note("killing", process=member.name)
        member.process.kill()
        member.process.wait(DEADLINE_SECONDS)

    def stop_for(self, process: "subprocess.Popen[bytes]", seconds: float) -> None:
        """Lets a process stand still for a while."""
        process.send_signal(signal.SIGSTOP)
        self.later(seconds, lambda: process.send_signal(signal.SIGCONT))  # nothing happens if it was killed meanwhile

    def usurp(self, member: Member, seconds: float) -> None:
        """Lets a process stand still, and has another take its place before it goes on."""
        former = member.process
        former.send_signal(signal.SIGSTOP)
        self._former.append(member.replace())
        self.later(seconds, lambda: former.send_signal(signal.SIGCONT))

    def jump_clock(self, seconds: int) -> None:
        """Lets the time of day be wrong for the server."""
        part = self._clock.with_suffix(".part")
        part.write_text(str(seconds), encoding="utf-8")
        part.replace(self._clock)

    def later(self, seconds: float, act: Callable[[], object]) -> None:
        """Does something after a while, or when traffic ends."""
        timer = threading.Timer(seconds, act)
        timer.daemon = True
        timer.start()
        self._later.append(timer)

    def revive(self) -> None:
        """Starts again whatever has died."""
        if self.server.process.poll() is not None:
            self.restart_server()
        for member in (*self.schedulers, *self.workers):
            if member.revive():
                self.history.note("revived", process=member.name)

    def calm(self) -> None:
        """Ends all faults that are still going on, or to come."""
        if self._is_armed:
            self.kill_server()
            self.restart_server()
        for timer in self._later:
            if timer.is_alive():
                timer.cancel()
                timer.function()
        self._later.clear()

    def end_schedulers(self) -> None:
        """Has the schedulers end their sessions and themselves."""
        processes = [*(member.process for member in self.schedulers), *self._former]
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(DEADLINE_SECONDS)

    def end_workers(self) -> None:
        """Kills the workers."""
        for member in self.workers:
            self.kill(member)

    def logs(self) -> dict[str, str]:
        """Gives what schedulers and workers have written to their standard errors."""
        return {member.name: member.log for member in (*self.schedulers, *self.workers)}

    def _new_server(self, failpoints: str = "") -> Server:
        """Starts a server with what the one before has left in its folders."""
        flags = ("--model-config", str(self.model), *self.scenario.server_flags)
        clock = {"PYTHONPATH": _path(_TESTS / "robustness" / "jumping_clock"), "STATEPOOL_TEST_CLOCK": str(self._clock)}
        return Server(self.folder / "server", *flags, environment={**clock, VARIABLE: failpoints})

    def _serve(self) -> None:
        self.server.wait_until_ready()
        with self.client() as client:
            self.history.note("serving", incarnation=client.get_pool().incarnation)

    def _start_all(self) -> None:
        self.proxies = [
            Proxy(self.folder / f"proxy{n}.sock", self.server.socket) for n in range(self.scenario.schedulers)
        ]
        for proxy in self.proxies:
            self._ends.callback(proxy.close)
        for rank in range(RANKS):
            for number in range(self.scenario.workers_per_rank):
                arguments = (self.server.target, f"worker{rank}.{number}", str(rank))
                self.workers.append(self._member("worker_process", *arguments))
        sockets = [self.folder / f"{worker.name}.sock" for worker in self.workers]
        until(lambda: all(path.exists() for path in sockets), "the workers", START_SECONDS)
        for number, proxy in enumerate(self.proxies):
            arguments = (proxy.target, f"scheduler{number}", str(number))
            self.schedulers.append(self._member("scheduler_process", *arguments))

    def _member(self, module: str, target: str, name: str, number: str) -> Member:
        command = [sys.executable, "-m", f"robustness.{module}", target, name, number]
        command += [self.scenario.to_json(), str(self.folder)]
        environment = {**os.environ, "PYTHONPATH": _path(_TESTS), "GRPC_VERBOSITY": "NONE"}
        return Member(name, command, environment, self.folder / f"{name}.log")

    def _end(self) -> None:
        self._is_armed = False
        self.calm()
        processes = [member.process for member in (*self.schedulers, *self.workers)]
        for process in (*processes, *self._former, self.server.process):
            process.kill()
            process.wait(DEADLINE_SECONDS)
        self._ends.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()


def _path(folder: Path) -> str:
    """Writes a Python path that begins with a folder."""
    return os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
