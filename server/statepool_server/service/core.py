"""What the services share: the pool, its memory, and everything that stands between a request and them."""

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from google.protobuf.message import Message

from statepool.layout import ArenaLayout
from statepool.v1 import pool_pb2
from statepool_server.answers import Pin, Usage
from statepool_server.convert import Convert
from statepool_server.limits import Limits
from statepool_server.memory import Memory
from statepool_server.pool import Pool
from statepool_server.service.admission import Admission
from statepool_server.service.copying import CopyThreads
from statepool_server.service.replays import Replays, Reply
from statepool_server.service.turnover import Turnover
from statepool_server.service.waiting import WaitingLine


def new_incarnation() -> int:
    """Draws the number of this server process: random, 64 bits, not zero."""
    return secrets.randbelow(2**64 - 1) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolDescription:
    """What GetPool tells beside usage and limits."""

    model_type: str
    """Hugging Face ``model_type``, or "custom"."""
    layout: ArenaLayout
    """Layout of every rank's arena."""
    block_tokens: int
    """Tokens per align-mode block."""
    tp_size: int
    """Tensor-parallel size of the model."""
    tp_ranks: Sequence[int]
    """Local ranks."""
    num_spec: int
    """Speculative tokens that the conv states have room for."""
    devices: Sequence[str]
    """Device of each local rank."""
    features: Sequence[str]
    """Optional abilities."""


class Core:
    """State of one serving process; lives on one event loop.

    Attributes:
        block_listeners: Called when blocks were taken or given back.
        session_listeners: Called with the ids of sessions that ended, or with none when one was taken over.
    """

    def __init__(
        self, *, description: PoolDescription, limits: Limits, pool: Pool, memory: Memory, copies: CopyThreads
    ) -> None:
        self.incarnation = new_incarnation()
        self.description = description
        self.limits = limits
        self.pool = pool
        self.memory = memory
        self.copies = copies
        self.convert = Convert(limits, self.incarnation)
        self.replays = Replays(limits.max_replays)
        self.admission = Admission(
            max_calls=limits.max_calls,
            max_session_calls=limits.max_session_calls,
            max_sessions=limits.max_sessions,
        )
        self.turnover = Turnover(pool)
        self.waiting: WaitingLine[Reply] = WaitingLine(limits.max_waiting_allocations, self.turnover.hint)
        self.block_listeners: list[Callable[[], None]] = [self.turnover.blocks_changed]
        self.session_listeners: list[Callable[[Sequence[int]], None]] = []
        self.started_ns = time.time_ns()
        self._started_monotonic_ns = time.monotonic_ns()

    @property
    def uptime_ns(self) -> int:
        """Nanoseconds since the start, by the monotonic clock."""
        return time.monotonic_ns() - self._started_monotonic_ns

    def once(self, session: tuple[int, int], request_id: str, request: Message, act: Callable[[], Message]) -> Message:
        """Gives the answer that a session's request got before, else acts and remembers the answer.

        Args:
            session: Session id and epoch.
            request_id: The caller's id of the request.
            request: The request.
            act: Changes the pool, whole or not at all, and builds the answer.
        """
        self.pool.check_session(*session)
        ticket = Replays.ticket(session[0], request_id, request)
        reply = self.replays.find(ticket) or self.replays.keep(ticket, act())
        return reply.response

    def unpin(self, pin: Pin) -> None:
        """Takes a pin back, and serves those who wait for its blocks."""
        self.pool.unpin(pin)
        self.blocks_changed()

    def expire_sessions(self) -> list[int]:
        """Ends the sessions whose lease has run out, and serves those who wait for their blocks."""
        expired = self.pool.expire_sessions(time.monotonic_ns())
        if expired:
            self.sessions_changed(expired)
        return expired

    def blocks_changed(self) -> None:
        """Serves those who wait for blocks, and tells who wants to know how many there are."""
        self.waiting.serve()
        self.blocks_taken()

    def blocks_taken(self) -> None:
        """Tells who wants to know how many blocks there are."""
        for listener in self.block_listeners:
            listener()

    def sessions_changed(self, ended: Sequence[int] = ()) -> None:
        """Refuses those who have lost their session.

        Args:
            ended: Sessions that have ended; others were taken over.
        """
        for session_id in ended:
            self.replays.forget(session_id)
        self.waiting.recheck()
        for listener in self.session_listeners:
            listener(ended)
        self.blocks_changed()

    def usage(self, usage: Usage | None = None) -> pool_pb2.PoolUsage:
        """Writes the counts of blocks and sessions, by default those of this moment."""
        usage = usage or self.pool.usage()
        return pool_pb2.PoolUsage(
            free_blocks=usage.free,
            evictable_blocks=usage.evictable,
            held_blocks=usage.held,
            releasing_blocks=usage.releasing,
            committed_blocks=usage.committed,
            busy_blocks=usage.busy,
            sessions=usage.sessions,
            waiting_allocations=len(self.waiting),
            sequences=usage.sequences,
            quarantined_blocks=usage.quarantined,
        )
