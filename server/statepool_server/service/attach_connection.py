"""One attached process: its connection, the fences that it is told, and its death."""

import asyncio
import contextlib
import socket

import structlog
from google.protobuf.message import DecodeError

from statepool.errors import BadFieldError
from statepool.framing import MAX_FRAME_BYTES, FrameReader, frame
from statepool.v1 import attach_pb2 as pb
from statepool_server.attachments import Attachment
from statepool_server.service.attach_peers import DeathLock, Peer
from statepool_server.service.core import Core
from statepool_server.service.ledger import Kind

_log = structlog.get_logger("statepool.attachments")


class AttachConnection:
    """The connection of an attached process; the process stays attached when it ends, until it is dead.

    Attributes:
        attachment: What the pool knows of it.
        peer: The process.
        token: With which it was made.
        is_connected: Whether the connection stands.
    """

    def __init__(self, core: Core, attachment: Attachment, peer: Peer, lock: DeathLock, token: bytes) -> None:
        self.attachment = attachment
        self.peer = peer
        self.token = token
        self.is_connected = False
        self._core = core
        self._lock = lock
        self._stream: socket.socket | None = None
        self._unsent = b""
        self._frames = FrameReader()
        self._told = 0
        self._news = asyncio.Event()
        self._returned = asyncio.Event()

    def connect(self, stream: socket.socket, frames: FrameReader, unsent: bytes) -> None:
        """Takes a connection of the process, its first or a later one.

        Args:
            stream: The connection; non-blocking.
            frames: What of its messages has been read.
            unsent: What is to be sent first.
        """
        self._stream, self._frames, self._unsent, self._told = stream, frames, unsent, 0
        self.is_connected = True
        self._returned.set()

    def fences_changed(self) -> None:
        """Tells that there may be fences that the process has not been told of."""
        self._news.set()

    async def run(self) -> str:
        """Serves the process, over one connection after the other, until it leaves or is dead.

        Returns:
            What it did.
        """
        while True:
            if self.is_connected and await self._serve():
                return "said so"
            if await self._is_dead():
                return "is dead"

    def close(self) -> None:
        """Gives everything back that belongs to the process; `run` has ended."""
        self._hang_up()
        self.peer.close()
        self._lock.close()

    def forget(self) -> None:
        """Removes what a later server would look for the process by."""
        self._lock.remove()

    async def _serve(self) -> bool:
        """Serves a connection to its end; tells whether the process has said that it leaves."""
        self._returned.clear()
        stream = self._stream
        assert stream is not None  # noqa: S101 — `connect` has set it
        telling = asyncio.create_task(self._tell(stream))
        try:
            await self._listen(stream)
            return True
        except ConnectionError as error:
            _log.warning("attachment hung up", attachment_id=self.attachment.attachment_id, error=str(error))
        except (OSError, ValueError, DecodeError, BadFieldError) as error:
            _log.warning("attachment misbehaved", attachment_id=self.attachment.attachment_id, error=str(error))
        finally:
            telling.cancel()
            await asyncio.wait([telling])  # awaiting it would mistake our own cancellation for its
            self.is_connected = False
        self._hang_up()
        return False

    async def _is_dead(self) -> bool:
        """Waits until the process is dead, or has connected again."""
        death = asyncio.create_task(self.peer.death(self._lock))
        returned = asyncio.create_task(self._returned.wait())
        try:
            await asyncio.wait({death, returned}, return_when=asyncio.FIRST_COMPLETED)
            return death.done()
        finally:
            for task in (death, returned):
                task.cancel()
            await asyncio.gather(death, returned, return_exceptions=True)

    def _hang_up(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    async def _listen(self, stream: socket.socket) -> None:
        """Takes answers until the process says that it leaves.

        Raises:
            ValueError, DecodeError, BadFieldError: It sent something else.
            OSError: The connection ended.
        """
        loop = asyncio.get_running_loop()
        data = b""
        while True:
            for message in self._frames.feed(data):
                said = pb.WorkerFrame.FromString(message)
                if said.HasField("detach"):
                    return
                self._answered(said)
            data = await loop.sock_recv(stream, MAX_FRAME_BYTES)
            if not data:
                raise ConnectionError("the end of the connection, without a word")

    def _answered(self, message: pb.WorkerFrame) -> None:
        if not message.HasField("quiesced"):
            raise ValueError("a frame that is neither Quiesced nor Detach")
        answer = (self.attachment.attachment_id, message.quiesced.number)
        self._core.ledger.perform(Kind.QUIESCED, answer)

    async def _tell(self, stream: socket.socket) -> None:
        """Sends the process each fence that waits for it, once; one that reads nothing makes only this task wait."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):  # the reader finds out as well
            await loop.sock_sendall(stream, self._unsent)
            while True:
                self._news.clear()
                for fence in self._core.pool.attachments.unanswered(self.attachment.attachment_id):
                    if fence.number > self._told:
                        message = pb.Fence(number=fence.number, session_id=fence.session_id, epoch=fence.epoch)
                        self._told = fence.number
                        await loop.sock_sendall(stream, frame(pb.ServerFrame(fence=message)))
                await self._news.wait()
