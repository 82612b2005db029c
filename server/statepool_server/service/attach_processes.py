"""The attached processes: who may attach, who is, and what becomes of each."""

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

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
from statepool_server.arena_types import Export
from statepool_server.attachments import Attachment
from statepool_server.service.attach_connection import AttachConnection
from statepool_server.service.attach_peers import DeathLock, Peer
from statepool_server.service.attach_tokens import Grant, Tokens
from statepool_server.service.core import Core
from statepool_server.service.ledger import Kind, ValueCodec

RETRY_SECONDS = 1.0
"""Hint to a process that found the server out of descriptors."""

_log = structlog.get_logger("statepool.attachments")


@dataclass(frozen=True, slots=True)
class Attacher:
    """The process behind an attachment: what is needed to know it again, and to prove its death."""

    rank_index: int
    """The rank whose arena it maps."""
    read_only: bool
    """Whether it only reads."""
    token: bytes = field(repr=False)
    """With which it was attached: nobody but the process has it."""
    pid: int
    """Its process id; 0: not visible from here."""
    uid: int
    """Its user."""
    started: int | None
    """When it started; None: not visible from here."""


class AttachedProcesses:
    """Gives out tokens, hands arenas over, and detaches what is gone."""

    def __init__(self, core: Core, socket_path: str, token_ttl: float, folder: Path) -> None:
        """Begins without any.

        Args:
            core: What the services share.
            socket_path: Where processes connect.
            token_ttl: Seconds that a token is good.
            folder: Where the locks are that attached processes hold.
        """
        self.tokens = Tokens(token_ttl)
        self._core = core
        self._socket_path = socket_path
        self._folder = folder
        self._attachers: dict[int, Attacher] = {}
        self._connections: dict[int, AttachConnection] = {}
        self._serving: dict[int, asyncio.Task[None]] = {}
        register, numbers = core.ledger.register, ValueCodec(tuple[int, int])
        register(Kind.ATTACH, ValueCodec(Attacher), self._attach)
        register(Kind.DETACH, ValueCodec(int), self._detach, can_be_refused=False)
        register(Kind.QUIESCED, numbers, lambda answer, _now: core.pool.quiesced(*answer), can_be_refused=False)
        register(Kind.RELEASE_QUARANTINE, ValueCodec(int), lambda number, _now: core.pool.release_quarantine(number))

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
        export = core.memory.export(request.rank_index)
        if export is None:
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
            export=_kind(export),
            cuda=_allocation(export),
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
            OverloadedError: The server is out of descriptors, or its journal is full.
            QuotaExceededError: As many processes as may are attached.
            OSError: The connection broke; the process has got nothing.
        """
        core, grant = self._core, self.tokens.redeem(token)
        attacher = Attacher(grant.rank_index, grant.read_only, token, peer.pid, peer.uid, peer.started)
        attachment = core.ledger.perform(Kind.ATTACH, attacher)
        try:
            lock = DeathLock(self._lock_path(attachment.attachment_id))
        except OSError as error:
            core.ledger.perform(Kind.DETACH, attachment.attachment_id)
            raise _out_of_descriptors(error) from error
        try:
            unsent = self._hand_over(stream, attachment, lock)
        except BaseException:
            core.ledger.perform(Kind.DETACH, attachment.attachment_id)
            lock.close()
            lock.remove()
            raise
        self._begin(AttachConnection(core, attachment, peer, lock, token)).connect(stream, frames, unsent)
        _log.info("attached", attachment_id=attachment.attachment_id, pid=peer.pid, read_only=grant.read_only)

    def readmit(self, stream: socket.socket, peer: Peer, hello: attach_pb2.Hello, frames: FrameReader) -> None:
        """Goes on with an attached process whose connection ended, with the server before this one for example.

        Args:
            stream: Its new connection; non-blocking.
            peer: The process.
            hello: What it presents.
            frames: What of its messages has been read.

        Raises:
            AttachmentNotFoundError: It is not attached: the server does not know it, or its memory, any more.
            PeerUntrustedError: It was another process.
            OverloadedError: It still has a connection.
            OSError: The connection broke.
        """
        self._core.pool.attachments.check(hello.attachment_id)
        connection = self._connections[hello.attachment_id]
        if not secrets.compare_digest(connection.token, hello.token) or not connection.peer.is_same(peer):
            raise PeerUntrustedError(f"attachment {hello.attachment_id} is another process")
        if connection.is_connected:  # its end has not been seen yet
            raise OverloadedError("the attachment has a connection", retry_after=RETRY_SECONDS)
        welcome = frame(attach_pb2.ServerFrame(attached=self._welcome(connection.attachment)))
        connection.connect(stream, frames, welcome)
        peer.close()
        _log.info("attached again", attachment_id=hello.attachment_id, pid=peer.pid)

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
        cleared: int = self._core.ledger.perform(Kind.RELEASE_QUARANTINE, attachment_id)
        _log.warning("quarantine released", attachment_id=attachment_id, cleared_blocks=cleared)
        return cleared

    def fences_changed(self) -> None:
        """Tells every process of the fences that it has not been told of."""
        for connection in self._connections.values():
            connection.fences_changed()

    def rows(self) -> list[pool_pb2.Attachment]:
        """Lists the attachments."""
        return [self._row(connection) for connection in self._connections.values()]

    def dump(self) -> dict[int, Attacher]:
        """Shows who is attached."""
        return self._attachers

    def load(self, state: Mapping[int, Attacher]) -> None:
        """Takes a state over; nothing is done about it before `resume`."""
        self._attachers.update(state)

    def resume(self) -> None:
        """Waits for the processes that an earlier server has attached: to connect again, or to be dead."""
        for attachment_id, known in list(self._attachers.items()):
            if not self._lock_path(attachment_id).exists():  # the server ended before it handed anything over
                self._core.ledger.perform(Kind.DETACH, attachment_id)
                continue
            peer = Peer.known(known.pid, known.uid, known.started)
            lock = DeathLock(self._lock_path(attachment_id))
            attachment = self._core.pool.attachments.live[attachment_id]
            self._begin(AttachConnection(self._core, attachment, peer, lock, known.token))

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

    def _attach(self, attacher: Attacher, _now_ns: int) -> Attachment:
        attachment = self._core.pool.attach(attacher.rank_index, attacher.read_only)
        self._attachers[attachment.attachment_id] = attacher
        return attachment

    def _detach(self, attachment_id: int, _now_ns: int) -> int:
        del self._attachers[attachment_id]
        return self._core.pool.detach(attachment_id)

    def _hand_over(self, stream: socket.socket, attachment: Attachment, lock: DeathLock) -> bytes:
        """Sends descriptors and the first bytes of the welcome; returns the others, where it is long."""
        with contextlib.ExitStack() as opened:
            try:
                arena = self._core.memory.open_descriptor(attachment.rank_index, read_only=attachment.read_only)
                opened.callback(os.close, arena)
                locked = lock.take()
                opened.callback(os.close, locked)
            except OSError as error:
                raise _out_of_descriptors(error) from error
            welcome = frame(attach_pb2.ServerFrame(attached=self._welcome(attachment)))
            return welcome[socket.send_fds(stream, [welcome], [arena, locked]) :]

    def _welcome(self, attachment: Attachment) -> attach_pb2.Attached:
        core, sessions = self._core, self._core.pool.sessions
        export = core.memory.export(attachment.rank_index)
        return attach_pb2.Attached(
            incarnation=core.incarnation,
            attachment_id=attachment.attachment_id,
            export=_kind(export),
            cuda=_allocation(export),
            arena_bytes=core.description.layout.nbytes,
            last_session_id=sessions.last_id,
            session_ids=[session.session_id for session in sessions],
            epochs=[session.epoch for session in sessions],
        )

    def _begin(self, connection: AttachConnection) -> AttachConnection:
        attachment_id = connection.attachment.attachment_id
        self._connections[attachment_id] = connection
        self._serving[attachment_id] = asyncio.create_task(self._serve(connection))
        return connection

    async def _serve(self, connection: AttachConnection) -> None:
        attachment_id = connection.attachment.attachment_id
        try:
            self._gone(attachment_id, await connection.run())
        except Exception:  # noqa: BLE001 — whatever it is, the others are served; the process stays attached
            _log.exception("attachment no longer served", attachment_id=attachment_id)
        finally:
            connection.close()
            del self._serving[attachment_id]

    def _gone(self, attachment_id: int, why: str) -> int:
        cleared: int = self._core.ledger.perform(Kind.DETACH, attachment_id)
        self._connections.pop(attachment_id).forget()
        _log.info("detached", attachment_id=attachment_id, why=f"the process {why}", cleared_blocks=cleared)
        return cleared

    def _lock_path(self, attachment_id: int) -> Path:
        return self._folder / f"attached-{attachment_id}.lock"

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


def _kind(export: Export | None) -> "pool_pb2.ArenaExport.ValueType":
    return pool_pb2.ARENA_EXPORT_CUDA_FILE if export and export.device_uuid else pool_pb2.ARENA_EXPORT_FILE


def _allocation(export: Export | None) -> pool_pb2.CudaAllocation | None:
    if export is None or not export.device_uuid:
        return None
    return pool_pb2.CudaAllocation(device_uuid=export.device_uuid, mapping_bytes=export.mapping_bytes)


def _out_of_descriptors(error: OSError) -> OverloadedError:
    return OverloadedError(f"the arena cannot be handed over: {error.strerror}", retry_after=RETRY_SECONDS)
