"""Calls about processes that are attached to the pool."""

from statepool import rpc
from statepool.descriptions import Attachment, AttachOffer
from statepool.errors import AttachmentNotFoundError
from statepool.rpc import Call
from statepool.v1 import admin_pb2, pool_pb2


def attach_pool(
    rank_index: int, read_only: bool, layout_fingerprint: str, max_element_offset: int | None
) -> Call[AttachOffer]:
    """Builds AttachPool.

    Raises:
        ValueError: A number that is negative, or too large for the wire.
    """
    request = pool_pb2.AttachPoolRequest(
        rank_index=rank_index,
        read_only=read_only,
        layout_fingerprint=layout_fingerprint,
        max_element_offset=max_element_offset or 0,
    )
    return rpc.ATTACH_POOL.call(request, _offer)


def detach_pool(attachment_id: int, token: bytes) -> Call[int]:
    """Builds DetachPool; the result is the number of blocks that left quarantine."""
    request = pool_pb2.DetachPoolRequest(attachment_id=attachment_id, token=token)
    return rpc.DETACH_POOL.call(request, lambda response: response.cleared_blocks, gone=AttachmentNotFoundError)


def list_attachments() -> Call[list[Attachment]]:
    """Builds ListAttachments."""
    return rpc.LIST_ATTACHMENTS.call(pool_pb2.ListAttachmentsRequest(), _attachments)


def release_quarantine(attachment_id: int, condemned: bool) -> Call[int]:
    """Builds ReleaseQuarantine; the result is the number of blocks that left quarantine."""
    request = admin_pb2.ReleaseQuarantineRequest(attachment_id=attachment_id, condemned=condemned)
    return rpc.RELEASE_QUARANTINE.call(request, lambda response: response.cleared_blocks)


def _offer(response: pool_pb2.AttachPoolResponse) -> AttachOffer:
    return AttachOffer(
        incarnation=response.incarnation,
        token=response.token,
        token_ttl=response.token_ttl.ToNanoseconds() / 1e9,
        socket_path=response.socket_path,
    )


def _attachments(response: pool_pb2.ListAttachmentsResponse) -> list[Attachment]:
    return [
        Attachment(
            attachment_id=row.attachment_id,
            rank_index=row.rank_index,
            read_only=row.read_only,
            pid=row.pid,
            is_connected=row.is_connected,
            unanswered_fences=row.unanswered_fences,
        )
        for row in response.attachments
    ]
