"""What a scheduler tells its workers: the forward passes of a step, as lines of JSON over a Unix socket."""

import base64
import json
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from statepool.loadtest.batch import Pass
from statepool.loadtest.states import extend_digests
from statepool.outcomes import StepOutcome

PATIENCE_SECONDS = 4.0
"""How long a scheduler waits for a worker: less than many a stopped one stands still."""


class PassFailedError(Exception):
    """A worker did not do a pass, or nobody knows whether it did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A forward pass of one sequence."""

    sequence_id: int
    """The sequence."""
    blocks: list[int]
    """The running block and those after it that the pass writes."""
    generations: list[int]
    """Their generations."""
    accepted_block: int
    """Where the temporal states stand before the pass."""
    num_accepted: int
    """Where the windows of the conv states begin."""
    num_computed: int
    """Tokens that the state has seen before the pass."""
    num_written: int
    """Tokens that it has seen after the pass, if no draft is accepted."""
    digests: list[int]
    """Of every prefix of the tokens, those of the pass and its drafts included."""

    @property
    def num_drafts(self) -> int:
        """Drafts of the pass."""
        return len(self.blocks) - 1


def run_of(step: Pass) -> Run:
    """Writes down a pass."""
    request, drafts = step.request, len(step.drafts)
    digests = request.digests[: step.num_written + 1]
    extend_digests(digests, step.drafts)
    running = request.running
    return Run(
        sequence_id=request.sequence_id,
        blocks=running.block_ids[: 1 + drafts].tolist(),
        generations=running.generations[: 1 + drafts].tolist(),
        accepted_block=int(running.block_ids[request.num_accepted - 1]),
        num_accepted=request.num_accepted,
        num_computed=step.num_computed,
        num_written=step.num_written,
        digests=digests,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """All passes of a step."""

    session_id: int
    """The session that asks."""
    epoch: int
    """Its epoch."""
    step: int
    """The step."""
    outcome: str
    """The step's outcome in base64 where the worker is to run its copies, else empty."""
    runs: list[Run]
    """The passes."""

    def to_line(self) -> bytes:
        """Writes it for the worker."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> "Order":
        """Reads what `to_line` wrote."""
        values: dict[str, Any] = json.loads(line)
        return cls(**{**values, "runs": [Run(**run) for run in values["runs"]]})


def copies_of(outcome: StepOutcome) -> str:
    """Writes down an outcome whose copies the worker runs."""
    return base64.b64encode(outcome.to_bytes()).decode()


class WorkerLink:
    """A scheduler's connection to one worker of a rank; another worker is tried when it breaks."""

    def __init__(self, sockets: list[Path], first: int) -> None:
        """Names the workers.

        Args:
            sockets: Where the workers of the rank listen.
            first: Which is tried first.
        """
        self._sockets = sockets
        self._next = first
        self._stream: socket.socket | None = None

    def send(self, line: bytes) -> None:
        """Sends an order.

        Raises:
            PassFailedError: The worker is not there, or has gone.
        """
        try:
            if self._stream is None:
                self._stream = self._connected()
            self._stream.sendall(line)
        except OSError as error:
            raise self._lost(error) from error

    def receive(self) -> None:
        """Waits until the worker has done what it was sent.

        Raises:
            PassFailedError: It has not, or does not answer in time.
        """
        assert self._stream is not None
        try:
            data = b""
            while not data.endswith(b"\n"):
                received = self._stream.recv(65536)
                if not received:
                    raise ConnectionError("the worker has gone")
                data += received
        except OSError as error:
            raise self._lost(error) from error
        if failure := json.loads(data):
            raise PassFailedError(failure)

    def close(self) -> None:
        """Hangs up, so that a late answer is not taken for another's; the next order goes to the next worker."""
        if self._stream is not None:
            self._stream.close()
        self._stream = None
        self._next += 1

    def _connected(self) -> socket.socket:
        stream = socket.socket(socket.AF_UNIX)
        stream.settimeout(PATIENCE_SECONDS)
        stream.connect(str(self._sockets[self._next % len(self._sockets)]))
        return stream

    def _lost(self, error: OSError) -> PassFailedError:
        self.close()
        return PassFailedError(f"{type(error).__name__}: {error}")
