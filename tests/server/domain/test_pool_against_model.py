"""Guarantee: whatever is asked in whatever order, the pool answers as the naive model; a refusal changes nothing."""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from statepool.errors import StatepoolError
from statepool.refs import BlockRefs
from statepool_server.answers import Pin
from statepool_server.blocks import BlockState
from statepool_server.integrity import check_integrity
from statepool_server.pool import Pool, PoolConfig
from support.folding import Folded
from support.pool_model import BLOCK_TOKENS, ModelPool

BLOCK_COUNT = 7
MAX_SESSIONS = 3
T = TypeVar("T")
Pairs = list[tuple[int, int]]

hashes = st.lists(st.sampled_from([b"a", b"b", b"c", b"d"]), max_size=4)
namespaces = st.sampled_from(["", "m"])
who = st.integers(0, 9)
rows = st.lists(st.integers(0, 9), max_size=4, unique=True)


class PoolMachine(RuleBasedStateMachine):
    """Drives the pool, a second pool with the same calls, and the model, through random histories."""

    def __init__(self) -> None:
        super().__init__()
        config = PoolConfig(block_count=BLOCK_COUNT, block_tokens=BLOCK_TOKENS, max_sessions=MAX_SESSIONS)
        self.folded = Folded()
        self.pool = Pool(config, self.folded.apply)
        self.twin = Pool(config)
        self.model = ModelPool(BLOCK_COUNT, MAX_SESSIONS)
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
        """Picks a live session; index 9 picks one that is not."""
        live = [(session_id, session.epoch) for session_id, session in self.model.sessions.items()]
        if index < 9 and live:
            return live[index % len(live)]
        return self.sessions[(self.now + len(self.seen)) % len(self.sessions)]

    def refs(self, session: tuple[int, int], indices: list[int]) -> tuple[BlockRefs, Pairs]:
        """Picks refs: below 7 the session's blocks, 7 and 8 any allocated block, 9 any of the past, or a bad one."""
        live = [(i, block.generation) for i, block in self.model.blocks.items() if block.generation % 2]
        own = [(i, g) for i, g in live if session[0] in self.model.blocks[i].references]
        pairs = [self._pick(index, own if index < 7 else live if index < 9 else []) for index in indices]
        return BlockRefs.of([block for block, _ in pairs], [generation for _, generation in pairs]), pairs

    def _pick(self, index: int, candidates: Pairs) -> tuple[int, int]:
        return candidates[index % len(candidates)] if candidates else self.seen[(7 * index + self.now) % len(self.seen)]

    def remember(self, refs: BlockRefs) -> Pairs:
        pairs = list(zip(refs.block_ids.tolist(), refs.generations.tolist(), strict=True))
        self.seen += [pair for pair in pairs if pair not in self.seen]
        return pairs

    @rule(key=st.sampled_from(["", "", "x", "y"]), ttl=st.integers(20, 200), take_over=st.booleans())
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

    @rule(session=who)
    def delete_session(self, session: int) -> None:
        who = self.session(session)
        answers = self.ask(lambda pool: pool.delete_session(*who), lambda: self.model.delete(*who))
        assert answers is None or answers[0] == answers[1] == answers[2]

    @rule(passed=st.sampled_from([0, 1, 5, 60]))
    def expire_sessions(self, passed: int) -> None:
        self.now += passed
        expected_next = min((session.expires for session in self.model.sessions.values()), default=None)
        assert self.pool.next_expiry_ns == expected_next
        answers = self.ask(lambda pool: pool.expire_sessions(self.now), lambda: self.model.expire(self.now))
        assert answers is not None
        assert answers[0] == answers[1] == answers[2]

    @rule(session=who, count=st.sampled_from([0, 1, 1, 2, 2, 3, 4, BLOCK_COUNT]))
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
        refs, pairs = self.refs(who, indices)
        self.ask(lambda pool: pool.free(*who, refs), lambda: self.model.release(*who, pairs))

    @rule(session=who, indices=rows)
    def retain(self, session: int, indices: list[int]) -> None:
        who = self.session(session)
        refs, pairs = self.refs(who, indices)
        self.ask(lambda pool: pool.retain(*who, refs), lambda: self.model.retain(*who, pairs))

    @rule(
        session=who,
        indices=rows,
        namespace=namespaces,
        values=st.lists(st.sampled_from([b"a", b"b", b"c", b"d"]), min_size=4, max_size=4),
        boundary=st.sampled_from([BLOCK_TOKENS] * 6 + [2 * BLOCK_TOKENS, 0, 3]),
        off_by=st.sampled_from([0] * 9 + [1]),
    )
    def commit(
        self, session: int, indices: list[int], namespace: str, values: list[bytes], boundary: int, off_by: int
    ) -> None:
        who = self.session(session)
        refs, pairs = self.refs(who, indices)
        chosen, count = values[: len(pairs)], len(pairs)
        boundaries, written = np.full(count, boundary), np.full(count, boundary + off_by)
        answers = self.ask(
            lambda pool: pool.commit(*who, refs, namespace, chosen, boundaries, written),
            lambda: self.model.commit(*who, pairs, namespace, chosen, boundaries.tolist(), written.tolist()),
        )
        if answers:
            result, twin, expected = answers
            assert result.holders == twin.holders
            assert (result.holders.block_ids.tolist(), result.duplicate_rows.tolist()) == expected

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
        refs, pairs = self.refs(who, indices)
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
        refs, pairs = self.refs(who, indices)
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
        to, to_pairs = self.refs(who, dst[:count])
        source, source_pairs = self.refs(who, src[:count])
        other, other_pairs = self.refs(who, temporal[:count])
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

    @invariant()
    def agree(self) -> None:
        check_integrity(self.pool)
        assert self.pool.digest() == self.twin.digest()
        listing = self.pool.list_blocks(0, BLOCK_COUNT, list(BlockState))
        blocks = [self.model.blocks[block] for block in listing.refs.block_ids.tolist()]
        assert listing.refs.generations.tolist() == [block.generation for block in blocks]
        assert listing.reference_counts.tolist() == [sum(block.references.values()) for block in blocks]
        assert listing.prefix_hashes == [block.name[1] if block.name else b"" for block in blocks]
        usage = self.pool.usage()
        assert (usage.free, usage.evictable) == (len(self.model.free), len(self.model.evictable))
        assert usage.sessions == len(self.model.sessions)
        assert self.folded.snapshot() == {
            block: (model.generation, sum(model.references.values()), model.name)
            for block, model in self.model.blocks.items()
            if model.generation
        }
        assert self.folded.sessions == {i: session.epoch for i, session in self.model.sessions.items()}


PoolMachine.TestCase.settings = settings(
    max_examples=500,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestPoolAgainstModel = PoolMachine.TestCase


pytestmark = pytest.mark.timeout(400)
