"""Processes that attach, driven by lines on their standard input; tests kill and stop them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from service.servers import DEADLINE_SECONDS, Server

SCRIPT = Path(__file__).with_name("worker_process.py")


class Worker:
    """One process, attached to a rank; it needs no torch.

    Attributes:
        process: The process.
        attachment_id: Its attachment.
    """

    def __init__(
        self, server: Server, rank_index: int = 0, *, read_only: bool = False, reattach_within: float = 0.0
    ) -> None:
        """Starts it and waits until it is attached."""
        settings = [str(rank_index), str(int(read_only)), str(reattach_within)]
        arguments = [sys.executable, str(SCRIPT), server.target, *settings]
        self.process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.attachment_id: int = self.hear()

    def ask(self, verb: str, *arguments: int) -> Any:
        """Has it do something, and returns what it says when that is done."""
        self.send(verb, *arguments)
        return self.hear()

    def send(self, verb: str, *arguments: int) -> None:
        """Has it do something."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([verb, *arguments]) + "\n")
        self.process.stdin.flush()

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal; after SIGSTOP, waits until every thread stands still."""
        self.process.send_signal(number)
        if number is signal.SIGSTOP:
            os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)

    def wait(self) -> int:
        """Waits for its end and returns how it ended."""
        return self.process.wait(DEADLINE_SECONDS)

    def end(self) -> None:
        """Ends it, whatever it does."""
        self.process.kill()
        self.process.communicate(timeout=DEADLINE_SECONDS)

    def hear(self) -> Any:
        """Waits for what it says next."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the worker ended with {self.process.wait(DEADLINE_SECONDS)}"
        return json.loads(line)


class Workers:
    """Starts workers and ends them."""

    def __init__(self) -> None:
        self._started: list[Worker] = []

    def start(
        self, server: Server, rank_index: int = 0, *, read_only: bool = False, reattach_within: float = 0.0
    ) -> Worker:
        """Starts a worker."""
        worker = Worker(server, rank_index, read_only=read_only, reattach_within=reattach_within)
        self._started.append(worker)
        return worker

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for worker in self._started:
            worker.end()
