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

_log = structlog.get_logger("statepool.attachments")


class AttachConnection:
    """The connection of an attached process; the process stays attached when it ends, until it is dead.

    Attributes:
        attachment: What the pool knows of it.
        peer: The process.
        token: With which it was made.
        is_connected: Whether the connection stands.
        has_detached: Whether the process has said that it leaves.
    """

    def __init__(
        self,
        core: Core,
        attachment: Attachment,
        stream: socket.socket,
        peer: Peer,
        lock: DeathLock,
        token: bytes,
        unsent: bytes,
    ) -> None:
        self.attachment = attachment
        self.peer = peer
        self.token = token
        self.is_connected = True
        self.has_detached = False
        self._unsent = unsent
        self._core = core
        self._stream = stream
        self._lock = lock
        self._told = 0
        self._news = asyncio.Event()

    def fences_changed(self) -> None:
        """Tells that there may be fences that the process has not been told of."""
        self._news.set()

    async def run(self, frames: FrameReader) -> None:
        """Serves the connection until the process has said that it leaves, or its death is proven."""
        telling = asyncio.create_task(self._tell())
        try:
            await self._listen(frames)
            self.has_detached = True
            return
        except ConnectionError as error:
            _log.warning("attachment hung up", attachment_id=self.attachment.attachment_id, error=str(error))
        except (OSError, ValueError, DecodeError, BadFieldError) as error:
            _log.warning("attachment misbehaved", attachment_id=self.attachment.attachment_id, error=str(error))
        finally:
            telling.cancel()
            await asyncio.wait([telling])  # awaiting it would mistake our own cancellation for its
            self.is_connected = False
        self._stream.close()
        await self.peer.death(self._lock)

    def close(self) -> None:
        """Gives everything back that belongs to the connection; `run` has ended."""
        self._stream.close()
        self.peer.close()
        self._lock.close()

    async def _listen(self, frames: FrameReader) -> None:
        """Takes answers until the process says that it leaves.

        Raises:
            ValueError, DecodeError, BadFieldError: It sent something else.
            OSError: The connection ended.
        """
        loop = asyncio.get_running_loop()
        data = b""
        while True:
            for message in frames.feed(data):
                said = pb.WorkerFrame.FromString(message)
                if said.HasField("detach"):
                    return
                self._answered(said)
            data = await loop.sock_recv(self._stream, MAX_FRAME_BYTES)
            if not data:
                raise ConnectionError("the end of the connection, without a word")

    def _answered(self, message: pb.WorkerFrame) -> None:
        if not message.HasField("quiesced"):
            raise ValueError("a frame that is neither Quiesced nor Detach")
        cleared = self._core.pool.quiesced(self.attachment.attachment_id, message.quiesced.number)
        if cleared:
            self._core.blocks_changed()

    async def _tell(self) -> None:
        """Sends the process each fence that waits for it, once; one that reads nothing makes only this task wait."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):  # the reader finds out as well
            await loop.sock_sendall(self._stream, self._unsent)
            while True:
                self._news.clear()
                for fence in self._core.pool.attachments.unanswered(self.attachment.attachment_id):
                    if fence.number > self._told:
                        message = pb.Fence(number=fence.number, session_id=fence.session_id, epoch=fence.epoch)
                        self._told = fence.number
                        await loop.sock_sendall(self._stream, frame(pb.ServerFrame(fence=message)))
                await self._news.wait()
