"""The attached processes: who may attach, who is, and what becomes of each."""

import asyncio
import os
import secrets
import socket

import structlog

from statepool.errors import (
    BadFieldError,
    FeatureUnavailableError,
    LayoutMismatchError,
    OverloadedError,
    PeerUntrustedError,
    QuotaExceededError,
)
from statepool.framing import FrameReader, frame
from statepool.v1 import attach_pb2, pool_pb2
from statepool_server import convert
from statepool_server.service.attach_connection import AttachConnection
from statepool_server.service.attach_peers import DeathLock, Peer
from statepool_server.service.attach_tokens import Grant, Tokens
from statepool_server.service.core import Core

RETRY_SECONDS = 1.0
"""Hint to a process that found the server out of descriptors."""

_log = structlog.get_logger("statepool.attachments")


class AttachedProcesses:
    """Gives out tokens, hands arenas over, and detaches what is gone."""

    def __init__(self, core: Core, socket_path: str, token_ttl: float) -> None:
        """Begins without any.

        Args:
            core: What the services share.
            socket_path: Where processes connect.
            token_ttl: Seconds that a token is good.
        """
        self.tokens = Tokens(token_ttl)
        self._core = core
        self._socket_path = socket_path
        self._connections: dict[int, AttachConnection] = {}
        self._serving: dict[int, asyncio.Task[None]] = {}

    def offer(self, request: pool_pb2.AttachPoolRequest) -> pool_pb2.AttachPoolResponse:
        """Gives a token out.

        Raises:
            BadFieldError: No such rank.
            LayoutMismatchError: The process expects another layout, or cannot address all of it.
            FeatureUnavailableError: The arena cannot be shared.
            QuotaExceededError: As many processes as may are attached, or hold a token.
        """
        core = self._core
        ranks = core.description.tp_ranks
        if request.rank_index >= len(ranks):
            raise BadFieldError(f"rank_index: {request.rank_index} is not below {len(ranks)}", field="rank_index")
        self._check_layout(request)
        if not core.memory.is_shareable(request.rank_index):
            device = core.description.devices[request.rank_index]
            raise FeatureUnavailableError(f"rank_index: an arena on {device} cannot be attached", field="rank_index")
        limit = core.limits.max_attachments
        if len(self.tokens) + len(core.pool.attachments.live) >= limit:
            raise QuotaExceededError(f"{limit} processes are attached, or about to be", limit=limit)
        return pool_pb2.AttachPoolResponse(
            incarnation=core.incarnation,
            token=self.tokens.issue(Grant(request.rank_index, request.read_only)),
            token_ttl=convert.duration(round(self.tokens.ttl_seconds * 1e9)),
            socket_path=self._socket_path,
            export=pool_pb2.ARENA_EXPORT_FILE,
        )

    def admit(self, stream: socket.socket, peer: Peer, token: bytes, frames: FrameReader) -> None:
        """Attaches a process and hands the arena over, with nothing in between.

        Args:
            stream: Its connection; non-blocking.
            peer: The process.
            token: What it presents; used up, whatever comes of it.
            frames: What of its messages has been read.

        Raises:
            PeerUntrustedError: The token is not good.
            OverloadedError: The server is out of descriptors.
            QuotaExceededError: As many processes as may are attached.
            OSError: The connection broke; the process has got nothing.
        """
        core, grant = self._core, self.tokens.redeem(token)
        try:
            lock = DeathLock()
        except OSError as error:
            raise _out_of_descriptors(error) from error
        try:
            attachment = core.pool.attach(grant.rank_index, grant.read_only)
            try:
                unsent = self._hand_over(stream, grant, lock, attachment.attachment_id)
            except BaseException:
                core.pool.detach(attachment.attachment_id)
                raise
        except BaseException:
            lock.close()
            raise
        finally:
            lock.handed_over()
        connection = AttachConnection(core, attachment, stream, peer, lock, token, unsent)
        self._connections[attachment.attachment_id] = connection
        self._serving[attachment.attachment_id] = asyncio.create_task(self._serve(connection, frames))
        _log.info("attached", attachment_id=attachment.attachment_id, pid=peer.pid, read_only=grant.read_only)

    def detach(self, attachment_id: int, token: bytes) -> int:
        """Ends an attachment on the process's word.

        Args:
            attachment_id: The attachment.
            token: With which it was made: nobody but the process has it.

        Returns:
            Blocks that left quarantine.

        Raises:
            AttachmentNotFoundError: There is none.
            PeerUntrustedError: It was made with another token.
        """
        self._core.pool.attachments.check(attachment_id)
        if not secrets.compare_digest(self._connections[attachment_id].token, token):
            raise PeerUntrustedError(f"attachment {attachment_id} was made with another token", field="token")
        cleared = self._gone(attachment_id, "said so")
        if attachment_id in self._serving:
            self._serving[attachment_id].cancel()
        return cleared

    def release_quarantine(self, attachment_id: int) -> int:
        """Spares attachments (0: all of them) the answers to all fences.

        Returns:
            Blocks that left quarantine.

        Raises:
            AttachmentNotFoundError: There is none.
        """
        cleared = self._core.pool.release_quarantine(attachment_id)
        _log.warning("quarantine released", attachment_id=attachment_id, cleared_blocks=cleared)
        self._core.blocks_changed()
        return cleared

    def fences_changed(self) -> None:
        """Tells every process of the fences that it has not been told of."""
        for connection in self._connections.values():
            connection.fences_changed()

    def rows(self) -> list[pool_pb2.Attachment]:
        """Lists the attachments."""
        return [self._row(connection) for connection in self._connections.values()]

    async def close(self) -> None:
        """Ends all connections; the server stops."""
        serving = list(self._serving.values())
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)

    def _check_layout(self, request: pool_pb2.AttachPoolRequest) -> None:
        layout = self._core.description.layout
        ours, theirs = layout.block.fingerprint, request.layout_fingerprint
        if theirs and theirs != ours:
            raise LayoutMismatchError(
                f"layout_fingerprint: the pool's is {ours}, not {theirs[: len(ours)]}", field="layout_fingerprint"
            )
        reach, limit = max(tensor.max_element_offset for tensor in layout.tensors), request.max_element_offset
        if limit and reach > limit:
            raise LayoutMismatchError(
                f"max_element_offset: elements lie up to {reach} from the first of their tensor, beyond {limit}",
                field="max_element_offset",
                max_element_offset=reach,
                limit=limit,
            )

    def _hand_over(self, stream: socket.socket, grant: Grant, lock: DeathLock, attachment_id: int) -> bytes:
        """Sends descriptors and the first bytes of the welcome; returns the others, where it is long."""
        core, sessions = self._core, self._core.pool.sessions
        try:
            arena = core.memory.open_descriptor(grant.rank_index, read_only=grant.read_only)
        except OSError as error:
            raise _out_of_descriptors(error) from error
        attached = attach_pb2.Attached(
            incarnation=core.incarnation,
            attachment_id=attachment_id,
            export=pool_pb2.ARENA_EXPORT_FILE,
            arena_bytes=core.description.layout.nbytes,
            last_session_id=sessions.last_id,
            session_ids=[session.session_id for session in sessions],
            epochs=[session.epoch for session in sessions],
        )
        welcome = frame(attach_pb2.ServerFrame(attached=attached))
        try:
            return welcome[socket.send_fds(stream, [welcome], [arena, lock.theirs]) :]
        finally:
            os.close(arena)

    async def _serve(self, connection: AttachConnection, frames: FrameReader) -> None:
        attachment_id = connection.attachment.attachment_id
        try:
            await connection.run(frames)
            self._gone(attachment_id, "said so" if connection.has_detached else "is dead")
        except Exception:  # noqa: BLE001 — whatever it is, the others are served; the process stays attached
            _log.exception("attachment no longer served", attachment_id=attachment_id)
        finally:
            connection.close()
            del self._serving[attachment_id]

    def _gone(self, attachment_id: int, why: str) -> int:
        cleared = self._core.pool.detach(attachment_id)
        self._connections.pop(attachment_id)
        _log.info("detached", attachment_id=attachment_id, why=f"the process {why}", cleared_blocks=cleared)
        self._core.blocks_changed()
        return cleared

    def _row(self, connection: AttachConnection) -> pool_pb2.Attachment:
        attachment = connection.attachment
        return pool_pb2.Attachment(
            attachment_id=attachment.attachment_id,
            rank_index=attachment.rank_index,
            read_only=attachment.read_only,
            pid=connection.peer.pid,
            is_connected=connection.is_connected,
            unanswered_fences=len(self._core.pool.attachments.unanswered(attachment.attachment_id)),
        )


def _out_of_descriptors(error: OSError) -> OverloadedError:
    return OverloadedError(f"the arena cannot be handed over: {error.strerror}", retry_after=RETRY_SECONDS)
