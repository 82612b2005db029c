"""How a process presents itself at the attach socket of a server, and what comes for its token."""

import contextlib
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from statepool.errors import PeerUntrustedError, UnavailableError
from statepool.framing import MAX_FRAME_BYTES, MAX_SERVER_FRAME_BYTES, FrameReader, frame
from statepool.status import error_from_wire
from statepool.v1 import attach_pb2 as pb

DETACH = frame(pb.WorkerFrame(detach=pb.Detach()))
"""Says that a process has nothing of the arena any more."""
_DESCRIPTORS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Greeted:
    """A connection to a server that knows this process."""

    stream: socket.socket
    """The connection, without a time limit."""
    frames: FrameReader
    """What has come of its next message."""
    early: Sequence[bytes]
    """Messages that have come behind the welcome."""
    attached: pb.Attached
    """The welcome."""
    descriptors: Sequence[int]
    """Arena and lock, the receiver's to close; empty: the process has them already."""


def greet(path: str, hello: pb.Hello, timeout: float) -> Greeted:
    """Connects and presents a token: for another attachment, or for that of the hello, whose connection has broken.

    Args:
        path: The attach socket.
        hello: What to say.
        timeout: Seconds to wait for each answer.

    Raises:
        UnavailableError: Nobody answers there, or not in time.
        PeerUntrustedError: The server does not take the token or this process, or is none.
        StatepoolError: Whatever else the server has against it.
    """
    stream = _connect(path, timeout)
    descriptors: list[int] = []
    try:
        greeted = _present(stream, hello, descriptors)
        stream.settimeout(None)
    except BaseException as error:
        for descriptor in descriptors:
            os.close(descriptor)
        stream.close() if hello.attachment_id else leave(stream)
        if isinstance(error, (OSError, ValueError, DecodeError)):
            raise UnavailableError(f"the attach socket: {error}") from error
        raise
    return greeted


def leave(stream: socket.socket) -> None:
    """Hangs up on the way in: the server may have attached this process, which has nothing of it."""
    with contextlib.suppress(OSError):
        stream.sendall(DETACH)
    stream.close()


def _present(stream: socket.socket, hello: pb.Hello, descriptors: list[int]) -> Greeted:
    """Says who this process is, and takes what comes; descriptors are noted as they come."""
    with contextlib.suppress(BrokenPipeError):  # refused before it was read; the answer says why
        stream.sendall(frame(pb.WorkerFrame(hello=hello)))
    frames, messages = FrameReader(MAX_SERVER_FRAME_BYTES), list[bytes]()
    while not messages:
        data, received, _, _ = socket.recv_fds(stream, MAX_FRAME_BYTES, _DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
        descriptors += received
        if not data:
            raise UnavailableError("the server ended the connection")
        messages += frames.feed(data)
    answer = pb.ServerFrame.FromString(messages.pop(0))
    if answer.HasField("refused"):
        raise error_from_wire(answer.refused.error)
    attached, expected = answer.attached, 0 if hello.attachment_id else _DESCRIPTORS
    fits = len(descriptors) == expected and len(attached.session_ids) == len(attached.epochs)
    if not answer.HasField("attached") or not fits:
        raise PeerUntrustedError("whatever listens there does not speak the attach protocol")
    return Greeted(stream=stream, frames=frames, early=messages, attached=attached, descriptors=descriptors)


def _connect(path: str, timeout: float) -> socket.socket:
    stream = socket.socket(socket.AF_UNIX)
    try:
        stream.settimeout(timeout)
        stream.connect(path)
    except OSError as error:
        stream.close()
        raise UnavailableError(f"attach socket {path}: {error}") from error
    return stream
