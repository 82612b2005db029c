"""States that are lent to readers on other servers, each for a time."""

import heapq
import hmac
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np

from statepool.errors import QuotaExceededError, TransferNotFoundError
from statepool.refs import BlockRefs
from statepool_server.answers import Pin
from statepool_server.recency import Ids
from statepool_server.sessions import Session

_REMEMBERED_ENDS = 4096
_SPARE_NOTES = 64
"""Notes of ends beyond two for each open transfer, so that few transfers do not have all notes looked at often."""


class TransferEnd(StrEnum):
    """How a transfer has ended."""

    COMPLETED = "was completed"
    """Its reader has everything."""
    CANCELLED = "was cancelled"
    """Nobody wants it any more."""
    EXPIRED = "has expired"
    """Its time was over."""


@dataclass(frozen=True, slots=True, eq=False)
class LentStates:
    """States as their readers get them: one image per row, put together from two blocks where drafts were accepted."""

    blocks: BlockRefs
    """Blocks of the conv states, ``[n]``."""
    temporal_blocks: BlockRefs
    """Blocks of the temporal states, ``[n]``; mostly the same."""
    token_biases: Ids
    """Rows of the conv states, from the first, that are left out, ``[n]``."""
    num_tokens: int = 0
    """Tokens that the state of a sequence has seen; 0 for blocks."""

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def are_whole_blocks(self) -> bool:
        """Whether every image is that of one block, as it lies in memory."""
        return not self.token_biases.any()

    @classmethod
    def of_blocks(cls, blocks: BlockRefs) -> "LentStates":
        """Makes every image that of one block."""
        return cls(blocks, blocks, np.zeros(len(blocks), np.int64))


@dataclass(frozen=True, slots=True)
class LendingTerms:
    """To whom states are lent, and for how long."""

    token: bytes = field(repr=False)
    """What readers prove themselves with."""
    peer: str
    """Who it is for, for people."""
    expires_ns: int
    """When it ends by itself, on the caller's clock."""


@dataclass(frozen=True, slots=True, eq=False)
class Transfer:
    """An open transfer."""

    transfer_id: int
    """Counts from 1, never reused."""
    session_id: int
    """Session that has created it; it may have ended since."""
    tenant: str
    """On whose account it lends; empty: nobody's."""
    terms: LendingTerms
    """To whom, and for how long."""
    states: LentStates
    """What is lent."""
    pin: Pin
    """The blocks, each once."""


@dataclass(frozen=True, slots=True)
class _Ended:
    token: bytes = field(repr=False)
    end: TransferEnd


@dataclass(frozen=True, slots=True)
class TransfersState:
    """A table of transfers at a moment."""

    live: list[Transfer]
    """The open ones, in the order of their ids."""
    ended: dict[int, _Ended]
    """Those that are remembered, oldest first."""
    last_id: int
    """Highest id that was given out."""


class TransferTable:
    """Transfers by id.

    Attributes:
        live: The open ones, in the order of their ids.
        lent: ``[block_count]``; how many of them pin each block.
    """

    def __init__(self, max_transfers: int, block_count: int) -> None:
        self.live: dict[int, Transfer] = {}
        self.lent = np.zeros(block_count, np.int64)
        self._lent_by_tenant: dict[str, Ids] = {}  # columns as `lent`
        self._ends: list[tuple[int, int]] = []  # heap of (expires_ns, transfer id)
        self._max_transfers = max_transfers
        self._ended: OrderedDict[int, _Ended] = OrderedDict()
        self._last_id = 0

    @property
    def next_expiry_ns(self) -> int | None:
        """When the next transfer ends by itself, None where there is none."""
        ends = self._ends
        while ends:
            expires_ns, transfer_id = ends[0]
            if transfer_id in self.live:
                return expires_ns
            heapq.heappop(ends)
        return None

    @property
    def note_count(self) -> int:
        """Notes of ends that are kept, those of transfers that have ended included."""
        return len(self._ends)

    def check_room(self) -> None:
        """Refuses another transfer.

        Raises:
            QuotaExceededError: There are as many as may be.
        """
        if len(self.live) >= self._max_transfers:
            limit = self._max_transfers
            raise QuotaExceededError(f"{limit} transfers are open already", limit=limit)

    def open(self, session: Session, terms: LendingTerms, states: LentStates, pin: Pin) -> Transfer:
        """Adds a transfer of pinned blocks; there must be room."""
        self._last_id += 1
        transfer = Transfer(self._last_id, session.session_id, session.tenant, terms, states, pin)
        self.live[transfer.transfer_id] = transfer
        self._count_lent(transfer, 1)
        heapq.heappush(self._ends, (terms.expires_ns, transfer.transfer_id))
        if len(self._ends) > 2 * len(self.live) + _SPARE_NOTES:  # most are of transfers that have ended otherwise
            self._note_ends()
        return transfer

    def of_tenant(self, tenant: str) -> list[Transfer]:
        """Lists the open transfers on a tenant's account, in the order of their ids."""
        return [transfer for transfer in self.live.values() if transfer.tenant == tenant]

    def lent_by(self, tenant: str) -> Ids:
        """Lists the blocks that the open transfers on a tenant's account pin, each once, ascending."""
        column = self._lent_by_tenant.get(tenant)
        return np.empty(0, np.int64) if column is None else np.flatnonzero(column)

    def get(self, transfer_id: int, token: bytes) -> Transfer:
        """Finds an open transfer for who knows its token.

        Raises:
            TransferNotFoundError: There is none, or the token is another.
        """
        transfer = self.live.get(transfer_id)
        if transfer is not None and hmac.compare_digest(transfer.terms.token, token):
            return transfer
        ended = self._known_end(transfer_id, token)
        how = "is not known under this token" if ended is None else ended.value
        raise TransferNotFoundError(f"transfer {transfer_id} {how}", field="transfer")

    def has_ended(self, transfer_id: int, token: bytes, end: TransferEnd) -> bool:
        """Tells whether a transfer has ended in this way, as far as it is remembered."""
        return self._known_end(transfer_id, token) is end

    def close(self, transfer: Transfer, end: TransferEnd) -> None:
        """Removes a transfer; its pin is the caller's to take back."""
        del self.live[transfer.transfer_id]
        self._count_lent(transfer, -1)
        self._ended[transfer.transfer_id] = _Ended(transfer.terms.token, end)
        if len(self._ended) > _REMEMBERED_ENDS:
            self._ended.popitem(last=False)

    def due(self, now_ns: int) -> list[Transfer]:
        """Lists the transfers whose time is over, in the order of their ids."""
        return [transfer for transfer in self.live.values() if transfer.terms.expires_ns <= now_ns]

    def page(self, after_id: int, limit: int) -> list[Transfer]:
        """Lists open transfers in the order of their ids."""
        ids = [transfer_id for transfer_id in self.live if transfer_id > after_id][:limit]
        return [self.live[transfer_id] for transfer_id in ids]

    def facts(self) -> tuple[object, ...]:
        """Tells all that decides what the table answers, as plain values in a fixed order."""
        live = [
            (t.transfer_id, t.session_id, t.tenant, t.terms.token, t.terms, t.pin.readers.tolist(), t.states.num_tokens)
            for t in self.live.values()
        ]
        return live, [(transfer_id, it.token, it.end) for transfer_id, it in self._ended.items()], self._last_id

    def dump(self) -> TransfersState:
        """Shows everything."""
        return TransfersState(list(self.live.values()), dict(self._ended), self._last_id)

    def load(self, state: TransfersState) -> None:
        """Takes a state over; the table must be new."""
        self.live = {transfer.transfer_id: transfer for transfer in state.live}
        self._ended = OrderedDict(state.ended)
        self._last_id = state.last_id
        for transfer in state.live:
            self._count_lent(transfer, 1)
        self._note_ends()

    def prolong(self, until_ns: int) -> None:
        """Lets no transfer end before a moment."""
        for transfer_id, transfer in self.live.items():
            if transfer.terms.expires_ns < until_ns:
                self.live[transfer_id] = replace(transfer, terms=replace(transfer.terms, expires_ns=until_ns))
        self._note_ends()

    def _known_end(self, transfer_id: int, token: bytes) -> TransferEnd | None:
        ended = self._ended.get(transfer_id)
        return ended.end if ended is not None and hmac.compare_digest(ended.token, token) else None

    def _count_lent(self, transfer: Transfer, change: int) -> None:
        """Counts a transfer in or out; a pin names each block once."""
        if transfer.tenant not in self._lent_by_tenant:
            self._lent_by_tenant[transfer.tenant] = np.zeros_like(self.lent)
        for column in (self.lent, self._lent_by_tenant[transfer.tenant]):
            column[transfer.pin.readers] += change

    def _note_ends(self) -> None:
        self._ends = [(transfer.terms.expires_ns, transfer.transfer_id) for transfer in self.live.values()]
        heapq.heapify(self._ends)
