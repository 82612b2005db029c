"""What the services share: the pool, its memory, and everything that stands between a request and them."""

import functools
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.message import Message

from statepool.errors import StatepoolError
from statepool.layout import ArenaLayout
from statepool.v1 import pool_pb2
from statepool_server.access.rules import AccessFile
from statepool_server.answers import Usage
from statepool_server.convert import Convert
from statepool_server.limits import Limits
from statepool_server.memory import Memory
from statepool_server.pool import Pool
from statepool_server.service.admission import Admission
from statepool_server.service.copying import CopyThreads
from statepool_server.service.ledger import Kind, Ledger, MessageCodec
from statepool_server.service.quotas import Quotas
from statepool_server.service.replays import Replays, Reply
from statepool_server.service.turnover import Turnover
from statepool_server.service.waiting import WaitingLine
from statepool_server.service.works import Works
from statepool_server.tracing import NO_TRACING, Tracing

R = TypeVar("R", bound=Message)


def new_incarnation() -> int:
    """Draws the number of this server process: random, 64 bits, not zero."""
    return secrets.randbelow(2**64 - 1) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolDescription:
    """What GetPool tells beside usage and limits."""

    model_type: str
    """Hugging Face ``model_type``, or "custom"."""
    family: str
    """Family of the model, or "custom"."""
    family_parameters: Mapping[str, int]
    """What its states are made of, by the names of `statepool.shapes`."""
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
        incarnation: Number of this server process.
        continued_incarnations: Numbers of the server processes whose state this one goes on with, the latest last;
            their sessions are resumed by renewing them.
        block_listeners: Called after acts that took blocks, gave blocks back, or began or ended sequences.
        session_listeners: Called when sessions have ended or were taken over.
        forgetters: Called with the id of a session in the act that ends it.
        refusals: Errors that were answered, by reason.
        tracing: Makes calls and steps spans, where that is wished.
    """

    def __init__(
        self,
        *,
        description: PoolDescription,
        limits: Limits,
        pool: Pool,
        memory: Memory,
        copies: CopyThreads,
        access: AccessFile | None = None,
        tracing: Tracing = NO_TRACING,
    ) -> None:
        self.tracing = tracing
        self.incarnation = new_incarnation()
        self.continued_incarnations: tuple[int, ...] = ()
        self.description = description
        self.limits = limits
        self.pool = pool
        self.memory = memory
        self.access = access or AccessFile(None)
        self.quotas = Quotas(self.access, pool)
        self.copies = copies
        self.convert = Convert(limits, self.incarnation)
        self.replays = Replays(limits.max_replays)
        self.admission = Admission(
            max_calls=limits.max_calls,
            max_session_calls=limits.max_session_calls,
            max_sessions=limits.max_sessions,
            max_watchers=limits.max_watchers,
        )
        self.turnover = Turnover(pool)
        self.ledger = Ledger(pool)
        self.works = Works(self.ledger, pool, memory, copies)
        self.waiting: WaitingLine[Reply] = WaitingLine(limits.max_waiting_allocations, self.turnover.hint)
        self.block_listeners: list[Callable[[], None]] = [self.turnover.blocks_changed]
        self.session_listeners: list[Callable[[], None]] = []
        self.forgetters: list[Callable[[int], None]] = []
        self.refusals: Counter[str] = Counter()
        self.ledger.then.append(self._tell_changes)
        self._told = self._standing
        self.started_ns = time.time_ns()
        self._started_monotonic_ns = time.monotonic_ns()

    @property
    def uptime_ns(self) -> int:
        """Nanoseconds since the start, by the monotonic clock."""
        return time.monotonic_ns() - self._started_monotonic_ns

    def goes_by(self, incarnation: int) -> None:
        """Takes a number: answers carry it, and requests must."""
        self.incarnation = self.convert.incarnation = incarnation
        self.replays.readdress(incarnation)

    def register(self, kind: Kind, request_type: type[R], act: Callable[[R, int], tuple[Message, int]]) -> None:
        """Makes an act known that a session asks for, and that takes effect once per request id.

        Args:
            kind: Its kind.
            request_type: Its request: a message with the fields ``session`` and ``request_id``.
            act: Changes the pool, whole or not at all; returns the answer and the work before it (0: none).
        """

        def run(request: Any, now_ns: int) -> Reply:
            ticket = self.replays.ticket(request.session.session_id, request.request_id, request)
            return self.replays.keep(ticket, *act(request, now_ns))

        self.ledger.register(kind, MessageCodec(request_type), run)

    def once(self, kind: Kind, request: Any, *, gains: int = 0) -> Reply:
        """Gives the answer that a session's request got before, else performs its act, which `register` made known.

        Args:
            kind: Kind of the act.
            request: The request.
            gains: Blocks that the session may come to hold by it.

        Raises:
            QuotaExceededError: So many more blocks are too many for its tenant.
        """
        self.pool.check_session(*self.convert.session(request.session))
        reply = self.remembered(request)
        if reply is None:
            self.quotas.check_blocks(request.session.session_id, gains)
            reply = self.ledger.perform(kind, request)
        return reply

    def remembered(self, request: Any) -> Reply | None:
        """Finds the answer that a session's request got before.

        Raises:
            RequestIdReusedError: The id was used for another request.
        """
        return self.replays.find(self.replays.ticket(request.session.session_id, request.request_id, request))

    async def answer(self, reply: Reply, what: str) -> Message:
        """Waits for the memory work of an answer.

        Args:
            reply: The answer.
            what: What was asked, for the message of an error.

        Raises:
            StateLostError: The work could not be done.
        """
        await self.works.until_ended(reply.work)
        self.works.check(reply.work, what)
        return reply.response

    def refusal(self, error: StatepoolError) -> StatepoolError:
        """Completes an error that goes to a client, and counts it."""
        self.refusals[error.reason] += 1
        return self.turnover.complete(error)

    def forget_sessions(self, ended: Sequence[int]) -> None:
        """Forgets what was remembered of sessions; part of the acts that end them."""
        for forget in (self.replays.forget, *self.forgetters):
            for session_id in ended:
                forget(session_id)

    def sessions_changed(self) -> None:
        """Refuses those who have lost their session: it has ended, or was taken over."""
        self.waiting.recheck()
        for listener in self.session_listeners:
            listener()

    def usage(self, usage: Usage | None = None) -> pool_pb2.PoolUsage:
        """Writes the counts of blocks and sessions, by default those of this moment; to be read, not to be changed."""
        return _usage_to_wire(self.pool.usage() if usage is None else usage, len(self.waiting))

    @property
    def _standing(self) -> tuple[int, int]:
        """What others wait for: blocks that can be had, and the ends of sequences."""
        blocks, sequences = self.pool.blocks, self.pool.sequences
        return blocks.free_count + len(blocks.evictable), sequences.count

    def _tell_changes(self) -> None:
        """Serves those who wait for blocks, and tells who wants to know how many there are."""
        standing = self._standing
        if standing != self._told:  # most engine steps change nothing of it
            self._told = standing
            self.waiting.serve()
            for listener in self.block_listeners:
                listener()


@functools.lru_cache(maxsize=1)  # most engine steps leave all counts as they are
def _usage_to_wire(usage: Usage, waiting: int) -> pool_pb2.PoolUsage:
    return pool_pb2.PoolUsage(
        free_blocks=usage.free,
        evictable_blocks=usage.evictable,
        held_blocks=usage.held,
        releasing_blocks=usage.releasing,
        committed_blocks=usage.committed,
        busy_blocks=usage.busy,
        sessions=usage.sessions,
        waiting_allocations=waiting,
        sequences=usage.sequences,
        quarantined_blocks=usage.quarantined,
    )
