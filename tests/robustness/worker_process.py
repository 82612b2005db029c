"""A worker process: attached to one rank, it runs the passes of all schedulers, checks what it reads, and writes.

While it writes a block it leaves a mark in it, and looks whether the mark stays: another writer's is found out.
"""

import base64
import contextlib
import json
import random
import socket
import sys
import threading
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robustness.history import History
from robustness.passes import Order, Run
from robustness.scenario import OWNER_BYTES, OWNER_STATE, Scenario
from statepool import Client, Pool, StatepoolError, StepOutcome, UnavailableError
from statepool.attachment import ArenaAttachment
from statepool.errors import AttachmentNotFoundError
from statepool.host import HostEngine
from statepool.loadtest.states import PrefixStates

START_SECONDS, PAUSE_SECONDS = 60.0, 0.05
MOST_PAUSE_SECONDS = 0.004
"""How long a pass leaves its mark at most, so that others have time to overwrite it."""


class Memory:
    """The arena of one rank, as block images, attached again when the server was lost."""

    def __init__(self, client: Client, rank_index: int, history: History) -> None:
        """Attaches.

        Args:
            client: Talks to the server.
            rank_index: The rank.
            history: Where to note.
        """
        self._client = client
        self._rank_index = rank_index
        self._history = history
        self._untold: list[tuple[int, bytes]] = []  # attachments whose end a server that recovers must still be told
        self._attach_in_time()

    def _attach_in_time(self) -> None:
        """Attaches to a server that may still have to start."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                return self._attach()
            except UnavailableError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(PAUSE_SECONDS)

    def _attach(self) -> None:
        pool = self._client.get_pool()
        offer = self._client.attach_pool(rank_index=self._rank_index)
        self.attachment = ArenaAttachment(
            offer.socket_path, offer.token, nbytes=pool.layout.nbytes, read_only=False, timeout=30.0
        )
        self.pool = pool
        flat: NDArray[np.uint8] = np.frombuffer(self.attachment.buffer, np.uint8)  # type: ignore[call-overload]
        self.images = flat.reshape(pool.block_count, -1)
        self._engine = HostEngine(flat, pool.layout, 1)
        self._history.note("attached", attachment=self.attachment.attachment_id, incarnation=pool.incarnation)

    def revive(self) -> None:
        """Attaches again if the connection is lost; no pass may be running.

        Raises:
            StatepoolError: The server does not take it.
        """
        if self.attachment.error is not None:
            if not self.attachment.detach():
                self._untold.append((self.attachment.attachment_id, self.attachment.token))
            self._attach()
        while self._untold:
            with contextlib.suppress(AttachmentNotFoundError):
                self._client.detach_pool(*self._untold[-1])
            self._untold.pop()

    def run_copies(self, outcome: StepOutcome) -> None:
        """Does the memory work of a step, with the engine that attached workers have."""
        engine = self._engine
        if len(outcome.post_copies):
            engine.copy(outcome.post_copies.plan())
        if len(outcome.zeroed_block_ids):
            engine.zero(outcome.zeroed_block_ids)
        if len(outcome.pre_copies):
            engine.copy(outcome.pre_copies.plan())


class Worker:
    """Runs passes, one order at a time, as a device would."""

    def __init__(self, memory: Memory, scenario: Scenario, history: History, seed: str) -> None:
        self._memory = memory
        self._history = history
        self._dice = random.Random(seed)
        self._lock = threading.Lock()
        self._states = PrefixStates(memory.pool.layout.block, memory.pool.num_spec, scenario.seed)
        self._mark = mark_of(memory.pool)

    def stay_attached(self) -> None:
        """Attaches again, between passes, whenever the server was lost; never ends."""
        while True:
            with self._lock, contextlib.suppress(StatepoolError):
                self._memory.revive()
            time.sleep(PAUSE_SECONDS)

    def serve(self, stream: socket.socket) -> None:
        """Obeys one scheduler until it hangs up."""
        with contextlib.suppress(OSError), stream, stream.makefile("rb") as lines:
            for line in lines:
                stream.sendall(json.dumps(self._obey(Order.from_line(line))).encode() + b"\n")

    def _obey(self, order: Order) -> str:
        """Does what it is told, and says what went wrong, if anything did."""
        with self._lock:
            try:
                with self._memory.attachment.running(order.session_id, order.epoch):
                    self._run(order)
            except StatepoolError as error:
                self._history.note("not_done", session=order.session_id, epoch=order.epoch, error=type(error).__name__)
                return type(error).__name__
        return ""

    def _run(self, order: Order) -> None:
        blocks = [block for run in order.runs for block in run.blocks]
        generations = [generation for run in order.runs for generation in run.generations]
        about = {"incarnation": self._memory.attachment.incarnation, "session": order.session_id, "step": order.step}
        self._history.note("began", **about, blocks=blocks, generations=generations)
        if order.outcome:
            self._memory.run_copies(StepOutcome.from_bytes(base64.b64decode(order.outcome)))
        wrong = [difference for run in order.runs if (difference := self._difference(run))]
        foreign = self._write(order.runs, blocks)
        self._history.note("done", **about, compared=len(order.runs), wrong=wrong, foreign=foreign)

    def _difference(self, run: Run) -> str:
        """Compares every byte of the state before a pass with what it must be."""
        images, conv_offset = self._memory.images, self._states.conv_offset
        image = images[run.blocks[0]].copy()
        image[:conv_offset] = images[run.accepted_block, :conv_offset]
        state = self._states.difference(image, run.digests, run.num_computed, run.num_accepted)
        if not state:
            return ""
        return f"sequence {run.sequence_id}, {run.num_computed} tokens: {state} in {run.blocks}, {run.accepted_block}"

    def _write(self, runs: list[Run], blocks: list[int]) -> list[int]:
        """Writes what the passes leave; returns the blocks in which somebody else has written meanwhile."""
        images = self._memory.images
        mark = np.frombuffer(self._dice.randbytes(OWNER_BYTES), np.uint8)
        images[blocks, self._mark] = mark
        time.sleep(self._dice.uniform(0.0, MOST_PAUSE_SECONDS))
        foreign = np.array(blocks, np.int64)[(images[blocks, self._mark] != mark).any(axis=1)].tolist()
        written = [self._states.after_pass(run.digests, run.num_written, run.num_drafts) for run in runs]
        for run, after in zip(runs, written, strict=True):
            after[:, self._mark] = mark
            images[run.blocks] = after
        time.sleep(self._dice.uniform(0.0, MOST_PAUSE_SECONDS))
        for run, after in zip(runs, written, strict=True):
            foreign += np.array(run.blocks)[(images[run.blocks] != after).any(axis=1)].tolist()
        images[blocks, self._mark] = 0
        return list(dict.fromkeys(foreign))


def mark_of(pool: Pool) -> slice:
    """Tells which bytes of an image are for marks."""
    layout = pool.layout.block
    (place,) = [
        slice(offset, offset + state.nbytes)
        for state, offset in zip(layout.states, layout.image_offsets, strict=True)
        if state.name == OWNER_STATE
    ]
    return place


def main(target: str, name: str, rank_index: str, scenario_json: str, folder: str) -> None:
    """Serves schedulers at ``folder/name.sock`` until it is killed."""
    scenario, history = Scenario.from_json(scenario_json), History(Path(folder), name)
    with Client(target, timeout=30.0) as client, socket.socket(socket.AF_UNIX) as listener:
        memory = Memory(client, int(rank_index), history)
        worker = Worker(memory, scenario, history, f"{scenario.seed}.{name}")
        path = Path(folder) / f"{name}.sock"
        path.unlink(missing_ok=True)  # a killed predecessor's
        listener.bind(str(path))
        listener.listen()
        threading.Thread(target=worker.stay_attached, daemon=True).start()
        history.note("ready")
        while True:
            stream, _ = listener.accept()
            threading.Thread(target=worker.serve, args=(stream,), daemon=True).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
