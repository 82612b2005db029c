"""Who holds how many references to which block."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from statepool_server.blocks import ONE, Counts, first_true
from statepool_server.recency import Ids
from statepool_server.sessions import Session

NOBODY = 0
"""Holder of a block that no session holds as its first."""


@dataclass(frozen=True, slots=True, eq=False)
class HoldingsState:
    """Holdings at a moment, those in `Session.shared` left out; columns as of `Holdings`."""

    holder: Ids
    """``[block_count]``."""
    held: Ids
    """``[block_count]``."""
    in_sequences: Ids
    """``[block_count]``."""
    accounts: Ids
    """``[block_count]``."""


class Holdings:
    """References by session and block.

    Nearly every block is held by one session, its *holder*, in two columns; references of further sessions to a
    committed block stand in `Session.shared`. A session's references to one block are all in one of the two places.

    Attributes:
        holder: ``[block_count]``; session id, or `NOBODY`.
        held: ``[block_count]``; references of the holder.
        in_sequences: ``[block_count]``; references, among those of the sessions, that block tables hold.
        accounts: ``[block_count]``; `Session.account` of the holder before.
    """

    def __init__(self, block_count: int) -> None:
        self.holder = np.zeros(block_count, np.int64)
        self.held = np.zeros(block_count, np.int64)
        self.in_sequences = np.zeros(block_count, np.int64)
        self.accounts = np.zeros(block_count, np.int64)

    def give(self, session: Session, block_ids: Ids) -> None:
        """Makes a session the holder of blocks that nobody holds, with one reference each."""
        self.holder[block_ids] = session.session_id
        self.held[block_ids] = 1
        session.block_count += len(block_ids)

    def count(self, session: Session, block_ids: Ids) -> NDArray[np.int64]:
        """Counts a session's references to each block."""
        counts: NDArray[np.int64] = self.held[block_ids] * (self.holder[block_ids] == session.session_id)
        if session.shared:
            counts += np.fromiter(
                (session.shared.get(block, 0) for block in block_ids.tolist()), np.int64, len(block_ids)
            )
        return counts

    def first_short(self, session: Session, block_ids: Ids, counts: Counts) -> int:
        """Finds a row to whose block the session holds fewer references than counted, -1 where there is none."""
        if counts is ONE and not session.shared:
            return first_true(self.holder[block_ids] != session.session_id)  # a holder has at least one
        return first_true(self.count(session, block_ids) < counts)

    def add(self, session: Session, block_ids: Ids) -> None:
        """Adds one reference per row; a block may be in several rows."""
        unheld = block_ids[self.holder[block_ids] == NOBODY]
        if session.shared:
            unheld = np.fromiter((b for b in unheld.tolist() if b not in session.shared), np.int64)
        self.holder[unheld] = session.session_id
        own = self.holder[block_ids] == session.session_id
        np.add.at(self.held, block_ids[own], 1)
        shared_before = len(session.shared)
        for block in block_ids[~own].tolist():
            session.shared[block] = session.shared.get(block, 0) + 1
        session.block_count += len(np.unique(unheld)) + len(session.shared) - shared_before

    def drop(self, session: Session, block_ids: Ids, counts: Counts) -> None:
        """Drops references of distinct blocks, as many of each as counted; the session has them."""
        if session.shared:
            elsewhere = self.holder[block_ids] != session.session_id
            rows = np.broadcast_to(counts, len(block_ids))
            self._drop_shared(session, block_ids[elsewhere], rows[elsewhere])
            block_ids, counts = block_ids[~elsewhere], rows[~elsewhere]
        left = self.held[block_ids] - counts
        self.held[block_ids] = left
        gone = block_ids[left == 0] if np.count_nonzero(left) else block_ids
        self.holder[gone] = NOBODY
        self.accounts[gone] = session.account
        session.block_count -= len(gone)

    def last_held_by(self, account: int, block_ids: Ids) -> Ids:
        """Selects the blocks that nobody holds any more, and that were held last on an account."""
        chosen: Ids = block_ids[(self.holder[block_ids] == NOBODY) & (self.accounts[block_ids] == account)]
        return chosen

    def foreign(self, session: Session, block_ids: Ids) -> Ids:
        """Selects the blocks whose bytes may be another's, and that the session's tenant must not see as they are."""
        account = session.account
        return block_ids[self.accounts[block_ids] != account] if account else block_ids[:0]

    def blocks_of(self, session: Session) -> Ids:
        """Lists the blocks that a session holds, by id."""
        own = np.flatnonzero(self.holder == session.session_id)
        return np.union1d(own, list(session.shared)).astype(np.int64) if session.shared else own

    def some_holder(self, block_ids: Ids, sessions: Iterable[Session]) -> NDArray[np.int64]:
        """Names one session per block that holds it, `NOBODY` where none does."""
        holders = self.holder[block_ids]
        unheld = np.flatnonzero(holders == NOBODY)
        if len(unheld):
            sharers = {block: session.session_id for session in sessions for block in session.shared}
            holders[unheld] = [sharers.get(block, NOBODY) for block in block_ids[unheld].tolist()]
        return holders

    def dump(self) -> HoldingsState:
        """Shows everything, without copying the columns."""
        return HoldingsState(self.holder, self.held, self.in_sequences, self.accounts)

    def load(self, state: HoldingsState) -> None:
        """Takes a state over."""
        self.holder[:], self.held[:] = state.holder, state.held
        self.in_sequences[:], self.accounts[:] = state.in_sequences, state.accounts

    def _drop_shared(self, session: Session, block_ids: Ids, counts: NDArray[np.int64]) -> None:
        for block, count in zip(block_ids.tolist(), counts.tolist(), strict=True):
            rest = session.shared.pop(block) - count
            if rest:
                session.shared[block] = rest
            else:
                session.block_count -= 1


def counted(ids: Ids) -> tuple[Ids, Counts]:
    """Names each block once, in the order of its first row, with the number of its rows."""
    _, first, counts = np.unique(ids, return_index=True, return_counts=True)
    order = np.argsort(first)
    return ids[first[order]], counts[order]
