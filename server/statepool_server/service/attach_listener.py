"""The attach socket: accepts processes that present a token."""

import asyncio
import contextlib
import errno
import os
import socket
from pathlib import Path

import structlog
from google.protobuf.message import DecodeError

from statepool.errors import OverloadedError, PeerUntrustedError, StatepoolError
from statepool.framing import MAX_FRAME_BYTES, FrameReader, frame
from statepool.status import error_to_wire
from statepool.v1 import attach_pb2 as pb
from statepool_server.addresses import Address
from statepool_server.service.attach_peers import Peer
from statepool_server.service.attach_processes import AttachedProcesses

MAX_HANDSHAKES = 32
"""Connections that may stand without a token."""

PAUSE_SECONDS = 0.1
"""How long to wait when the process has no descriptor left for another connection."""

_PASSING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED})
"""Errors that leave the socket as it is: those who wait stay in its own queue."""

_log = structlog.get_logger("statepool.attachments")


class AttachListener:
    """Listens on the attach socket."""

    def __init__(self, path: Path, processes: AttachedProcesses, handshake_timeout: float) -> None:
        """Begins to listen.

        Args:
            path: The socket.
            processes: Takes those in who have presented a token.
            handshake_timeout: Seconds that a connection may take to present one.

        Raises:
            ValueError: The path is too long, is no socket, or another server answers there.
            OSError: It cannot be bound.
        """
        Address(f"unix:{path}", path).refuse_if_served()
        self._path = path
        self._processes = processes
        self._timeout = handshake_timeout
        self._handshakes: set[asyncio.Task[None]] = set()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        path.unlink(missing_ok=True)
        former = os.umask(0o177)
        try:
            self._socket.bind(str(path))
        finally:
            os.umask(former)
        self._socket.listen()

    async def run(self) -> None:
        """Accepts connections until cancelled.

        Raises:
            OSError: The socket is broken for good.
        """
        loop = asyncio.get_running_loop()
        while True:
            try:
                stream, _ = await loop.sock_accept(self._socket)
            except OSError as error:
                if error.errno not in _PASSING:
                    raise
                _log.warning("attach socket cannot accept", error=error.strerror)
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            self._begin(stream)

    async def close(self) -> None:
        """Stops listening."""
        self._socket.close()
        self._path.unlink(missing_ok=True)
        for task in self._handshakes:
            task.cancel()
        await asyncio.gather(*self._handshakes, return_exceptions=True)

    def _begin(self, stream: socket.socket) -> None:
        if len(self._handshakes) >= MAX_HANDSHAKES:
            _refuse(stream, OverloadedError(f"{MAX_HANDSHAKES} processes are attaching", retry_after=PAUSE_SECONDS))
            return
        task = asyncio.create_task(self._shake_hands(stream))
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)

    async def _shake_hands(self, stream: socket.socket) -> None:
        """Attaches a process, or tells it why not."""
        peer = Peer.of(stream)
        try:
            peer.check_user()
            hello, frames = await self._hello(stream)
            if hello.attachment_id:
                self._processes.readmit(stream, peer, hello, frames)
            else:
                self._processes.admit(stream, peer, hello.token, frames)
        except StatepoolError as error:
            _log.warning("attachment refused", pid=peer.pid, error=error.message)
            peer.close()
            _refuse(stream, error)
        except BaseException as error:
            peer.close()
            stream.close()
            if not isinstance(error, OSError):  # it hung up
                raise

    async def _hello(self, stream: socket.socket) -> tuple[pb.Hello, FrameReader]:
        """Reads what it presents.

        Raises:
            PeerUntrustedError: Something else came, or nothing in time.
        """
        loop, frames = asyncio.get_running_loop(), FrameReader()
        try:
            async with asyncio.timeout(self._timeout):
                while data := await loop.sock_recv(stream, MAX_FRAME_BYTES):
                    for message in frames.feed(data):
                        return pb.WorkerFrame.FromString(message).hello, frames
        except TimeoutError:
            raise PeerUntrustedError(f"no token within {self._timeout:g} s") from None
        except (ValueError, DecodeError) as error:
            raise PeerUntrustedError(f"not the attach protocol: {error}") from error
        raise PeerUntrustedError("the connection ended before a token came")


def _refuse(stream: socket.socket, error: StatepoolError) -> None:
    with contextlib.suppress(OSError):  # a new connection has room for one frame
        stream.send(frame(pb.ServerFrame(refused=pb.Refused(error=error_to_wire(error)))))
    stream.close()
