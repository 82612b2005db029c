"""A process that attaches and does what it is told, line by line."""

import itertools
import json
import os
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

from statepool import Client, SessionFencedError, StatepoolError
from statepool.attachment import ArenaAttachment

target, rank_index, read_only = sys.argv[1], int(sys.argv[2]), bool(int(sys.argv[3]))
reattach_within = float(sys.argv[4])
client = Client(target)
pool = client.get_pool()
offer = client.attach_pool(rank_index=rank_index, read_only=read_only)
attachment = ArenaAttachment(
    offer.socket_path,
    offer.token,
    nbytes=pool.layout.nbytes,
    read_only=read_only,
    timeout=30.0,
    reattach_within=reattach_within,
)
arena: Any = attachment.buffer
passes: list[Any] = []


def fill(block: int, value: int) -> None:
    """Writes a value to every byte of a block."""
    size = pool.block_bytes
    arena[block * size : (block + 1) * size] = bytes([value]) * size


def begin(session_id: int, epoch: int) -> str:
    """Begins a pass that lasts until `end`."""
    running = attachment.running(session_id, epoch)
    try:
        running.__enter__()
    except StatepoolError as error:
        return type(error).__name__
    passes.append(running)
    return ""


def end() -> None:
    """Ends the pass."""
    passes.pop().__exit__(None, None, None)


def write_on(block: int, session_id: int, epoch: int) -> None:
    """Writes a block in pass after pass until the session is fenced; then says so."""

    def run() -> None:
        try:
            for value in itertools.count(1):
                with attachment.running(session_id, epoch):
                    fill(block, value % 256)
        except SessionFencedError:
            say("fenced")

    threading.Thread(target=run, daemon=True).start()


def hang_up() -> None:
    """Closes the connection, but lives on with its mapping."""
    attachment._stream.shutdown(socket.SHUT_RDWR)  # noqa: SLF001 — no good worker does this, so there is no method


def incarnation() -> int:
    """Tells which server process it is attached to."""
    return attachment.incarnation


def why() -> str:
    """Tells why no pass can begin any more."""
    return "" if attachment.error is None else attachment.error.reason


def peek(block: int) -> int:
    """Reads the first byte of a block."""
    value: int = arena[block * pool.block_bytes]
    return value


def fork(block: int) -> list[object]:
    """Tells how a forked process ends that writes a block, and what the attachment says to another one."""
    statuses: list[object] = []
    attempts: list[Callable[[], object]] = [lambda: fill(block, 9), lambda: begin(1, 1)]
    for attempt in attempts:
        if not (pid := os.fork()):
            try:
                attempt()
            except RuntimeError:
                os._exit(7)
            os._exit(0)
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    return statuses


def say(answer: object) -> None:
    """Answers."""
    print(json.dumps(answer), flush=True)


say(attachment.attachment_id)
for line in sys.stdin:
    verb, *arguments = json.loads(line)
    answer = globals()[verb](*arguments)
    if verb != "write_on":
        say(answer)
