"""Bounds of what one request may ask for; published by GetPool."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds that every request is held to."""

    max_batch: int
    """Rows (blocks, hashes, requests) of one request."""
    max_copy_specs: int
    """Copy-spec entries (requests x tensors) of one ComputeCopySpecs."""
    max_message_bytes: int
    """Bytes of one message, both ways."""
    max_chunk_bytes: int
    """Bytes of data in one chunk of a byte stream."""
    max_sessions: int
    """Live sessions."""
    max_waiting_allocations: int
    """AllocateBlocks calls that may wait at a time."""
    max_replays: int
    """Answers remembered per session."""
    min_ttl_ms: int
    """Shortest time to live of a session, in milliseconds."""
    max_ttl_ms: int
    """Longest time to live of a session, in milliseconds."""
    max_sequences: int
    """Live sequences of all sessions."""
    max_step_hashes: int
    """Prefix hashes of all admissions of one step."""
    max_attachments: int
    """Processes that are attached, or about to be."""
    max_calls: int
    """Calls of everybody under way, without the streams that last as long as their client."""
    max_session_calls: int
    """Calls of one session under way, without those that only give something back."""
    max_transfers: int
    """Open transfers."""
    max_watchers: int
    """Open WatchBlocks streams."""
