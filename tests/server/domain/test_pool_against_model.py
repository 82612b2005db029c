"""Guarantee: whatever is asked in whatever order, the pool answers as the naive model; a refusal changes nothing."""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from statepool.errors import StatepoolError
from statepool.refs import BlockRefs
from statepool_server.answers import Pin
from statepool_server.blocks import BlockState
from statepool_server.integrity import check_integrity
from statepool_server.journal.encoding import decode, encode
from statepool_server.pool import Pool, PoolConfig
from statepool_server.transfers import LendingTerms, TransferEnd
from statepool_server.view import PoolState
from support.folding import Folded
from support.machines import machine_settings
from support.pool_model import BLOCK_TOKENS, ModelPool

BLOCK_COUNT = 7
MAX_SESSIONS = 3
MAX_ATTACHMENTS = 3
MAX_TRANSFERS = 2
T = TypeVar("T")
Pairs = list[tuple[int, int]]

TOKENS = [b"t" * 16, b"u" * 16]
HASHES = [b"a", b"b", b"c", b"d", b"e", b"f"]
hashes = st.lists(st.sampled_from(HASHES), max_size=4)
namespaces = st.sampled_from(["m", "m", "n"])
who = st.integers(0, 29)
rows = st.lists(st.integers(0, 29), min_size=1, max_size=4, unique=True)


def refs_of(pairs: Pairs) -> BlockRefs:
    """Builds refs from pairs."""
    return BlockRefs.of([block for block, _ in pairs], [generation for _, generation in pairs])


class PoolMachine(RuleBasedStateMachine):
    """Drives the pool, a second pool with the same calls, and the model, through random histories."""

    def __init__(self) -> None:
        super().__init__()
        self.config = PoolConfig(
            block_count=BLOCK_COUNT,
            block_tokens=BLOCK_TOKENS,
            max_sessions=MAX_SESSIONS,
            max_attachments=MAX_ATTACHMENTS,
            max_transfers=MAX_TRANSFERS,
        )
        self.folded = Folded()
        self.pool = Pool(self.config, self.folded.apply)
        self.twin = Pool(self.config)
        self.model = ModelPool(BLOCK_COUNT, MAX_SESSIONS, max_attachments=MAX_ATTACHMENTS, max_transfers=MAX_TRANSFERS)
        self.now = 0
        self.seen: Pairs = [(0, 0), (1, 0), (BLOCK_COUNT, 1), (-1, 1)]  # every ref ever handed out, and bad ones
        self.sessions: list[tuple[int, int]] = [(0, 1), (99, 1)]
        self.pins: list[tuple[Pin, Pin, tuple[set[int], set[int]]]] = []

    def ask(self, pool_call: Callable[[Pool], T], model_call: Callable[[], Any]) -> tuple[T, T, Any] | None:
        """Makes one call on all three; returns the answers, None where all refused with the same class."""
        before, refusal = self.pool.digest(), None
        try:
            expected = model_call()
        except StatepoolError as error:
            refusal = type(error)
        if refusal is None:
            return pool_call(self.pool), pool_call(self.twin), expected
        for pool in (self.pool, self.twin):
            with pytest.raises(refusal) as refused:
                pool_call(pool)
            assert type(refused.value) is refusal
        assert self.pool.digest() == before
        return None

    def session(self, index: int) -> tuple[int, int]:
        """Picks a live session; index 29 picks one of the past, or a bad one."""
        live = [(session_id, session.epoch) for session_id, session in self.model.sessions.items()]
        if index < 29 and live:
            return live[index % len(live)]
        return self.sessions[(self.now + len(self.seen)) % len(self.sessions)]

    def pairs(self, session: tuple[int, int], indices: list[int]) -> Pairs:
        """Picks refs: below 24 the session's blocks, below 29 any allocated one, 29 any of the past, or a bad one."""
        live = [(i, block.generation) for i, block in self.model.blocks.items() if block.generation % 2]
        own = [(i, g) for i, g in live if session[0] in self.model.blocks[i].references]
        return [self._pick(index, own if index < 24 else live if index < 29 else []) for index in indices]

    def _pick(self, index: int, candidates: Pairs) -> tuple[int, int]:
        return candidates[index % len(candidates)] if candidates else self.seen[(7 * index + self.now) % len(self.seen)]

    def remember(self, refs: BlockRefs) -> Pairs:
        pairs = list(zip(refs.block_ids.tolist(), refs.generations.tolist(), strict=True))
        self.seen += [pair for pair in pairs if pair not in self.seen]
        return pairs

    @initialize(writers=st.integers(0, 2), key=st.sampled_from(["", "x"]))
    def begin(self, writers: int, key: str) -> None:
        """Attaches processes and opens a session that holds some blocks: without them nothing much happens."""
        for _ in range(writers):
            self.attach(False)
        self.create_session(key, 300, False)
        self.allocate(0, 3)

    @rule()
    def restart(self) -> None:
        """Puts another pool in the place of the twin, which takes over what was written down of it."""
        former, self.twin = self.twin, Pool(self.config)
        self.twin.load(decode(encode(former.dump()), PoolState))
        assert self.twin.digest() == former.digest()

    @rule(key=st.sampled_from(["", "", "x", "y"]), ttl=st.integers(50, 400), take_over=st.booleans())
    def create_session(self, key: str, ttl: int, take_over: bool) -> None:
        answers = self.ask(
            lambda pool: pool.create_session(key, ttl, take_over, self.now),
            lambda: self.model.create(key, ttl, take_over, self.now),
        )
        if answers:
            (info, taken_over), twin, expected = answers
            assert (info.session_id, info.epoch, taken_over) == expected
            assert twin == (info, taken_over)
            self.sessions.append((info.session_id, info.epoch))

    @rule(session=who)
    def keep_alive(self, session: int) -> None:
        who = self.session(session)
        answers = self.ask(lambda pool: pool.keep_alive(*who, self.now), lambda: self.model.keep_alive(*who, self.now))
        assert answers is None or answers[0] == answers[1] == answers[2]

    @rule(session=who, sure=st.integers(0, 4))
    def delete_session(self, session: int, sure: int) -> None:
        who = self.session(session) if sure == 0 else self.sessions[0]
        answers = self.ask(lambda pool: pool.delete_session(*who), lambda: self.model.delete(*who))
        assert answers is None or answers[0] == answers[1] == answers[2]

    @precondition(lambda self: any(session.owner_key for session in self.model.sessions.values()))
    @rule(index=st.integers(0, 5))
    def take_over(self, index: int) -> None:
        """Takes a session over that has an owner key, as a restarted scheduler does."""
        keys = [session.owner_key for session in self.model.sessions.values() if session.owner_key]
        self.create_session(keys[index % len(keys)], 200, True)

    @rule(passed=st.sampled_from([0, 0, 1, 5, 60]))
    def expire_sessions(self, passed: int) -> None:
        self.now += passed
        leases = [session.expires for session in self.model.sessions.values()]
        terms = [transfer.expires for transfer in self.model.transfers.values()]
        assert self.pool.next_expiry_ns == min(leases + terms, default=None)
        answers = self.ask(lambda pool: pool.expire_sessions(self.now), lambda: self.model.expire(self.now))
        assert answers is not None
        assert answers[0] == answers[1] == answers[2]
        answers = self.ask(lambda pool: pool.expire_transfers(self.now), lambda: self.model.expire_transfers(self.now))
        assert answers is not None
        assert answers[0] == answers[1] == answers[2]

    @rule(grace=st.sampled_from([50, 500]))
    def prolong(self, grace: int) -> None:
        """Puts off the ends of all leases, as a server does that goes on after another."""
        for each in (self.pool, self.twin):
            each.prolong_leases(self.now + grace)
        self.model.prolong(self.now + grace)

    @rule(session=who, count=st.sampled_from([0, 1, 1, 1, 2, 2, 3, BLOCK_COUNT]))
    def allocate(self, session: int, count: int) -> None:
        who = self.session(session)
        answers = self.ask(lambda pool: pool.allocate(*who, count), lambda: self.model.allocate(*who, count))
        if answers:
            refs, twin, expected = answers
            assert refs == twin
            assert self.remember(refs) == expected

    @rule(session=who, indices=rows)
    def free(self, session: int, indices: list[int]) -> None:
        who = self.session(session)
        self._free(who, self.pairs(who, indices))

    def _free(self, who: tuple[int, int], pairs: Pairs) -> None:
        refs = refs_of(pairs)
        self.ask(lambda pool: pool.free(*who, refs), lambda: self.model.release(*who, pairs))

    @rule(session=who, indices=rows)
    def retain(self, session: int, indices: list[int]) -> None:
        who = self.session(session)
        pairs = self.pairs(who, indices)
        refs = refs_of(pairs)
        self.ask(lambda pool: pool.retain(*who, refs), lambda: self.model.retain(*who, pairs))

    @rule(
        session=who,
        indices=rows,
        namespace=namespaces,
        values=st.lists(st.sampled_from(HASHES), min_size=4, max_size=4),
        boundary=st.sampled_from([BLOCK_TOKENS] * 6 + [2 * BLOCK_TOKENS, 0, 3]),
        off_by=st.sampled_from([0] * 9 + [1]),
    )
    def commit(
        self, session: int, indices: list[int], namespace: str, values: list[bytes], boundary: int, off_by: int
    ) -> None:
        who = self.session(session)
        pairs = self.pairs(who, indices)
        self._commit(who, pairs, namespace, values[: len(pairs)], boundary, off_by)

    def _commit(
        self, who: tuple[int, int], pairs: Pairs, namespace: str, chosen: list[bytes], boundary: int, off_by: int
    ) -> None:
        refs, count = refs_of(pairs), len(pairs)
        boundaries, written = np.full(count, boundary), np.full(count, boundary + off_by)
        answers = self.ask(
            lambda pool: pool.commit(*who, refs, namespace, chosen, boundaries, written),
            lambda: self.model.commit(*who, pairs, namespace, chosen, boundaries.tolist(), written.tolist()),
        )
        if answers:
            result, twin, expected = answers
            assert result.holders == twin.holders
            assert (result.holders.block_ids.tolist(), result.duplicate_rows.tolist()) == expected

    @rule(session=who, count=st.integers(1, 3), namespace=namespaces, first=st.integers(0, 5))
    def put_away(self, session: int, count: int, namespace: str, first: int) -> None:
        """Commits some blocks of a session and drops all its references to them, as a finished request does."""
        who = self.session(session)
        held = {i: b for i, b in self.model.blocks.items() if b.references.get(who[0]) and not b.committed}
        pairs = [(block_id, block.generation) for block_id, block in list(held.items())[:count]]
        values = [HASHES[(first + row) % len(HASHES)] for row in range(len(pairs))]
        self._commit(who, pairs, namespace, values, BLOCK_TOKENS, 0)
        self._free(who, [pair for pair in pairs for _ in range(held[pair[0]].references.get(who[0], 0))])

    @rule(session=who, namespace=namespaces, values=hashes)
    def lookup(self, session: int, namespace: str, values: list[bytes]) -> None:
        who = self.session(session)
        answers = self.ask(
            lambda pool: pool.lookup(*who, namespace, values), lambda: self.model.lookup(*who, namespace, values)
        )
        if answers:
            hit, twin, expected = answers
            assert hit == twin
            assert (None if hit is None else (hit.hash_index, *self.remember(hit.block)[0])) == expected

    @rule(session=who, indices=rows, namespace=namespaces, values=hashes)
    def evict(self, session: int, indices: list[int], namespace: str, values: list[bytes]) -> None:
        who = self.session(session)
        pairs = self.pairs(who, indices)
        refs = refs_of(pairs)
        answers = self.ask(
            lambda pool: pool.evict(*who, refs, namespace, values),
            lambda: self.model.evict(*who, pairs, namespace, values),
        )
        if answers:
            result, twin, expected = answers
            assert result == twin
            assert (result.unlisted, result.freed) == expected

    @rule(session=who, indices=rows, write=st.booleans())
    def pin(self, session: int, indices: list[int], write: bool) -> None:
        who = self.session(session)
        pairs = self.pairs(who, indices)
        refs = refs_of(pairs)
        if write:
            answers = self.ask(lambda pool: pool.pin_write(*who, refs), lambda: self.model.pin_write(*who, pairs))
        else:
            answers = self.ask(lambda pool: pool.pin_read(*who, refs), lambda: self.model.pin_read(*who, pairs))
        if answers:
            self.pins.append(answers)

    @rule(session=who, dst=rows, src=rows, temporal=rows)
    def pin_copy(self, session: int, dst: list[int], src: list[int], temporal: list[int]) -> None:
        count = min(len(dst), len(src), len(temporal))
        who = self.session(session)
        to_pairs = self.pairs(who, dst[:count])
        to = refs_of(to_pairs)
        source_pairs = self.pairs(who, src[:count])
        source = refs_of(source_pairs)
        other_pairs = self.pairs(who, temporal[:count])
        other = refs_of(other_pairs)
        answers = self.ask(
            lambda pool: pool.pin_copy(*who, source, to, other),
            lambda: self.model.pin_copy(*who, source_pairs, to_pairs, other_pairs),
        )
        if answers:
            self.pins.append(answers)

    @precondition(lambda self: self.pins)
    @rule(index=st.integers(0, 5))
    def unpin(self, index: int) -> None:
        pin, twin_pin, expected = self.pins.pop(index % len(self.pins))
        assert (set(pin.readers.tolist()), set(pin.writers.tolist())) == expected
        self.pool.unpin(pin)
        self.twin.unpin(twin_pin)
        self.model.unpin(expected)
        self.model.settle_after_unpin([*pin.readers.tolist(), *pin.writers.tolist()])

    @rule(session=who, indices=rows, ttl=st.sampled_from([0, 5, 200]))
    def lend(self, session: int, indices: list[int], ttl: int) -> None:
        who = self.session(session)
        pairs = self.pairs(who, indices)
        terms = LendingTerms(TOKENS[self.now % 2], "decode", self.now + ttl)
        answers = self.ask(
            lambda pool: pool.lend_blocks(*who, refs_of(pairs), terms),
            lambda: self.model.lend_blocks(*who, pairs, terms.token, terms.expires_ns),
        )
        if answers:
            transfer, twin, expected = answers
            assert (transfer.transfer_id, set(transfer.pin.readers.tolist())) == expected
            assert (twin.transfer_id, set(twin.pin.readers.tolist())) == expected

    @rule(index=st.integers(0, 5), token=st.sampled_from(TOKENS), is_complete=st.booleans())
    def end_transfer(self, index: int, token: bytes, is_complete: bool) -> None:
        """Ends a transfer; index 5 names one that has ended, or was never there."""
        transfer_id = self.transfer(index)
        end = TransferEnd.COMPLETED if is_complete else TransferEnd.CANCELLED
        self.ask(
            lambda pool: (pool.complete_transfer if is_complete else pool.cancel_transfer)(transfer_id, token),
            lambda: self.model.end_transfer(transfer_id, token, end),
        )

    @rule(index=st.integers(0, 5), token=st.sampled_from(TOKENS))
    def check_transfer(self, index: int, token: bytes) -> None:
        transfer_id = self.transfer(index)
        answers = self.ask(
            lambda pool: pool.check_transfer(transfer_id, token),
            lambda: self.model.check_transfer(transfer_id, token),
        )
        if answers:
            transfer, _, expected = answers
            assert transfer.states.blocks.block_ids.tolist() == [conv for conv, _, _ in expected.images]

    def transfer(self, index: int) -> int:
        live = list(self.model.transfers)
        return live[index % len(live)] if index < 5 and live else (self.now + index) % (self.model.last_transfer + 2)

    @rule(read_only=st.sampled_from([False, False, True]))
    def attach(self, read_only: bool) -> None:
        answers = self.ask(lambda pool: pool.attach(0, read_only), lambda: self.model.attach(read_only))
        assert answers is None or answers[0].attachment_id == answers[1].attachment_id == answers[2]

    @rule(index=st.integers(0, 5), sure=st.integers(0, 2))
    def detach(self, index: int, sure: int) -> None:
        attached = self.attachment(index) if sure == 0 else 0
        answers = self.ask(lambda pool: pool.detach(attached), lambda: self.model.detach(attached))
        assert answers is None or answers[0] == answers[1] == answers[2]

    @precondition(lambda self: self.model.attachments)
    @rule(index=st.integers(0, 5), fence=st.integers(0, 5))
    def quiesced(self, index: int, fence: int) -> None:
        standing = list(self.model.awaited)
        attached = self.attachment(index)
        number = standing[fence % len(standing)] if fence < 5 and standing else self.model.last_fence + fence - 4
        answers = self.ask(lambda pool: pool.quiesced(attached, number), lambda: self.model.quiesced(attached, number))
        assert answers is None or answers[0] == answers[1] == answers[2]

    @rule(index=st.integers(0, 5), every=st.booleans())
    def release_quarantine(self, index: int, every: bool) -> None:
        attached = 0 if every else self.attachment(index)
        answers = self.ask(
            lambda pool: pool.release_quarantine(attached), lambda: self.model.release_quarantine(attached)
        )
        assert answers is None or answers[0] == answers[1] == answers[2]

    @rule(session=who, indices=rows)
    def condemn(self, session: int, indices: list[int]) -> None:
        pairs = self.pairs(self.session(session), indices)
        refs = refs_of(pairs)
        answers = self.ask(lambda pool: pool.condemn(refs), lambda: self.model.condemn(pairs))
        assert answers is not None
        condemned, twin, expected = answers
        assert condemned == twin
        assert list(zip(condemned.block_ids.tolist(), condemned.generations.tolist(), strict=True)) == expected

    @rule()
    def pardon(self) -> None:
        answers = self.ask(lambda pool: pool.pardon(), lambda: self.model.pardon())
        assert answers is not None
        assert answers[0] == answers[1] == answers[2]

    def attachment(self, index: int) -> int:
        """Picks an attachment; index 5 picks one that may be gone, or was never there."""
        live = list(self.model.attachments)
        return live[index % len(live)] if index < 5 and live else self.model.last_attachment

    @invariant()
    def agree(self) -> None:
        check_integrity(self.pool)
        assert self.pool.digest() == self.twin.digest()
        listing = self.pool.list_blocks(0, BLOCK_COUNT, list(BlockState))
        blocks = [self.model.blocks[block] for block in listing.refs.block_ids.tolist()]
        assert listing.refs.generations.tolist() == [block.generation for block in blocks]
        assert listing.reference_counts.tolist() == [sum(block.references.values()) for block in blocks]
        assert listing.prefix_hashes == [block.name[1] if block.name else b"" for block in blocks]
        assert self.pool.blocks.free().tolist() == self.model.free
        assert self.pool.blocks.evictable.block_ids().tolist() == self.model.evictable
        assert self.pool.usage() == self.model.usage()
        for session_id in self.model.sessions:
            held = [i for i, block in self.model.blocks.items() if session_id in block.references]
            listing = self.pool.list_blocks(0, BLOCK_COUNT, list(BlockState), session_id)
            assert listing.refs.block_ids.tolist() == held
            assert self.pool.get_session(session_id).block_count == len(held)
        assert self.folded.snapshot() == {
            block: (model.generation, model.references, model.name)
            for block, model in self.model.blocks.items()
            if model.generation
        }
        assert self.folded.quarantined == {block for block, model in self.model.blocks.items() if model.fences}
        assert {i: set(t.pin.readers.tolist()) for i, t in self.pool.transfers.live.items()} == {
            i: t.pin[0] for i, t in self.model.transfers.items()
        }
        assert self.folded.sessions == {i: (s.epoch, s.owner_key) for i, s in self.model.sessions.items()}


PoolMachine.TestCase.settings = machine_settings(50)
TestPoolAgainstModel = PoolMachine.TestCase


pytestmark = pytest.mark.timeout(400)
