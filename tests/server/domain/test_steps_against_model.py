"""Guarantee: whatever steps are asked in whatever order, the pool answers as the slow model; a refusal leaves no trace.

A twin pool is asked everything but what is refused, and is seldom looked at: its digests, those of the steps included,
stay the same.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from statepool.errors import PoolExhaustedError, StatepoolError
from statepool_server.answers import Pin
from statepool_server.blocks import BlockState
from statepool_server.integrity import check_integrity
from statepool_server.journal.encoding import decode, encode
from statepool_server.pool import Pool, PoolConfig
from statepool_server.sequences.outcomes import StepOutcome
from statepool_server.sequences.requests import StepRequest
from statepool_server.transfers import LendingTerms, TransferEnd
from statepool_server.view import PoolState
from statepool_server.work import MemoryWork
from support.align_model import AlignModel, ModelOutcome, ModelSteps, ModelWork
from support.folding import Folded
from support.machines import machine_settings
from support.step_choices import CORRUPTIONS, Choices, StepDraft, Tokens
from support.steps import block_table, copy_rows, ints, refs_of

T = TypeVar("T")
Pairs = list[tuple[int, int]]

MAX_SESSIONS = 3
MAX_SEQUENCES = 11
MAX_TRANSFERS = 2
TOKEN = b"t" * 16
who = st.integers(0, 19)
rows = st.lists(st.integers(0, 29), min_size=1, max_size=3, unique=True)
choices = st.binary(min_size=64, max_size=64)


class StepMachine(RuleBasedStateMachine):
    """Drives the pool, a twin and the model through random histories of engines and of those that share their pool."""

    @initialize(sizes=st.sampled_from([(4, 0), (4, 2), (4, 3), (1, 0), (2, 1), (16, 1)]), blocks=st.integers(8, 48))
    def begin(self, sizes: tuple[int, int], blocks: int) -> None:
        """Opens two sessions: one lets the server copy, the other the worker."""
        block_tokens, spec = sizes
        self.config = PoolConfig(
            *(blocks, block_tokens, MAX_SESSIONS),
            num_spec=spec,
            max_sequences=MAX_SEQUENCES,
            max_transfers=MAX_TRANSFERS,
        )
        self.folded = Folded()
        self.pool, self.twin = Pool(self.config, self.folded.apply), Pool(self.config)
        self.model = AlignModel(blocks, MAX_SESSIONS, block_tokens, spec, MAX_SEQUENCES)
        self.now = 0
        self.past: list[tuple[int, int]] = [(99, 1)]
        self.tokens: dict[tuple[int, int], Tokens] = {}
        self.pins: list[tuple[Pin, Pin, tuple[set[int], set[int]]]] = []
        self.works: list[tuple[MemoryWork, MemoryWork, ModelWork]] = []
        self.create_session("x", 300, False)
        self.create_session("y", 300, False)

    def ask(self, pool_call: Callable[[Pool], T], model_call: Callable[[], Any]) -> tuple[T, T, Any] | None:
        """Makes one call on all three; where it is refused, on the pool and the model only, and returns None."""
        before, refusal = self.pool.digest(), None
        try:
            expected = model_call()
        except StatepoolError as error:
            refusal = error
        if refusal is None:
            return pool_call(self.pool), pool_call(self.twin), expected
        with pytest.raises(type(refusal)) as refused:
            pool_call(self.pool)
        assert type(refused.value) is type(refusal)
        assert self.pool.digest() == before
        if isinstance(refusal, PoolExhaustedError) and refusal.metadata:
            assert refused.value.metadata == refusal.metadata
        return None

    def session(self, index: int) -> tuple[int, int]:
        """Picks a live session; index 19 picks one of the past."""
        live = [(session_id, session.epoch) for session_id, session in self.model.sessions.items()]
        return live[index % len(live)] if index < 19 and live else self.past[self.now % len(self.past)]

    def pairs(self, session: tuple[int, int], indices: list[int]) -> Pairs:
        """Picks refs: below 20 to blocks of the session, below 29 to any allocated one, 29 to a free one."""
        live = [(i, block.generation) for i, block in self.model.blocks.items() if block.generation % 2]
        own = [(i, g) for i, g in live if session[0] in self.model.blocks[i].references]
        choice = [own if index < 20 else live if index < 29 else [] for index in indices]
        return [from_[i % len(from_)] if from_ else (1, 0) for i, from_ in zip(indices, choice, strict=True)]

    # Steps

    @rule(session=who, data=choices)
    def step(self, session: int, data: bytes) -> None:
        self._step(self.session(session), data, spoilt=False)

    @rule(session=who, data=choices)
    def next_step(self, session: int, data: bytes) -> None:
        self._step(self.session(session % 19), data, spoilt=False)

    @rule(session=who, data=choices)
    def several_steps(self, session: int, data: bytes) -> None:
        for begin in range(0, len(data), 16):
            self._step(self.session(session % 19), data[begin:] + data[:begin], spoilt=False)

    @rule(session=who, data=choices)
    def bad_step(self, session: int, data: bytes) -> None:
        self._step(self.session(session % 19), data, spoilt=True)

    @rule(session=who, times=st.integers(1, 6), listed=st.booleans(), data=choices)
    def decode(self, session: int, times: int, listed: bool, data: bytes) -> None:
        """Lets each running sequence decode a token, several times over."""
        who, chosen = self.session(session % 19), Choices(data)
        for _ in range(times):
            draft = StepDraft(chosen, self.model, who[0], self.tokens)
            self._ask_step(who, draft, draft.decode(listed=listed))

    def _step(self, who: tuple[int, int], data: bytes, *, spoilt: bool) -> None:
        chosen = Choices(data)
        hasty = chosen.rarely(9)
        while self.works and not hasty:
            self.finish_work(0)
        draft = StepDraft(chosen, self.model, who[0], self.tokens)
        request = draft.request()
        self._ask_step(who, draft, chosen.pick(CORRUPTIONS)(request, chosen) if spoilt else request)

    def _ask_step(self, who: tuple[int, int], draft: StepDraft, request: StepRequest) -> None:
        answers = self.ask(lambda pool: pool.step(*who, request), lambda: self.model.step(*who, request))
        if answers:
            outcome, twin, expected = answers
            assert twin.digest == outcome.digest
            assert read(outcome) == written(expected, self.model)
            self.tokens |= {(who[0], i): tokens for i, tokens in draft.admitted.items()}
            self._note_work(outcome, twin, expected)

    def _note_work(self, outcome: StepOutcome, twin: StepOutcome, expected: ModelOutcome) -> None:
        work, pin = expected.work, ((set(), set()) if expected.work is None else expected.work.pin)
        assert pin == (set(), set()) if outcome.work is None else pin == sets(outcome.work.pin)
        if outcome.work is not None:
            assert twin.work is not None
            assert work is not None
            assert outcome.work.zeroed_blocks.tolist() == expected.zeroed
            names = zip(outcome.work.publication.namespaces, outcome.work.publication.prefix_hashes, strict=True)
            to_publish = list(zip(outcome.work.publication.blocks.tolist(), names, strict=True))
            assert to_publish == work.to_publish
            self.works.append((outcome.work, twin.work, work))

    @precondition(lambda self: self.works)
    @rule(index=st.integers(0, 3))
    def finish_work(self, index: int) -> None:
        work, twin, expected = self.works.pop(index % len(self.works))
        self.pool.finish_work(work)
        self.twin.finish_work(twin)
        self.model.finish_work(expected, [*work.pin.readers.tolist(), *work.pin.writers.tolist()])

    @rule()
    def restart(self) -> None:
        """Puts another pool in the place of the twin, which takes over what was written down of it."""
        former, self.twin = self.twin, Pool(self.config)
        self.twin.load(decode(encode(former.dump()), PoolState))
        assert self.twin.digest() == former.digest()

    # Those who read states elsewhere

    @rule(session=who, index=st.integers(0, MAX_SEQUENCES), ttl=st.sampled_from([0, 5, 200]), data=choices)
    def lend_sequence(self, session: int, index: int, ttl: int, data: bytes) -> None:
        """Lends the state of a sequence; what it may write cannot be scheduled meanwhile."""
        who, terms = self.session(session), LendingTerms(TOKEN, "decode", self.now + ttl)
        known = list(self.model.steps.get(who[0], ModelSteps()).sequences)
        sequence_id = known[index % len(known)] if known else index
        answers = self.ask(
            lambda pool: pool.lend_sequence(*who, sequence_id, terms),
            lambda: self.model.lend_sequence(*who, sequence_id, TOKEN, terms.expires_ns),
        )
        if answers:
            transfer, _, expected = answers
            assert (transfer.transfer_id, set(transfer.pin.readers.tolist())) == expected
            states, lent = transfer.states, self.model.transfers[transfer.transfer_id]
            columns = states.blocks.block_ids, states.temporal_blocks.block_ids, states.token_biases
            assert list(zip(*(column.tolist() for column in columns), strict=True)) == lent.images
            assert states.num_tokens == lent.num_tokens
            self._step(who, data, spoilt=False)

    @rule(session=who, indices=rows, ttl=st.sampled_from([0, 5, 200]))
    def lend_blocks(self, session: int, indices: list[int], ttl: int) -> None:
        who, terms = self.session(session), LendingTerms(TOKEN, "decode", self.now + ttl)
        pairs = self.pairs(who, indices)
        refs = refs_of(pairs)
        answers = self.ask(
            lambda pool: pool.lend_blocks(*who, refs, terms),
            lambda: self.model.lend_blocks(*who, pairs, TOKEN, terms.expires_ns),
        )
        assert answers is None or answers[0].transfer_id == answers[2][0]

    @rule(index=st.integers(0, 2))
    def complete_transfer(self, index: int) -> None:
        known = [*self.model.transfers, 0]
        transfer_id = known[index % len(known)]
        self.ask(
            lambda pool: pool.complete_transfer(transfer_id, TOKEN),
            lambda: self.model.end_transfer(transfer_id, TOKEN, TransferEnd.COMPLETED),
        )

    # Those who share the pool

    @rule(key=st.sampled_from(["x", "y", "", "z"]), ttl=st.integers(50, 400), take_over=st.booleans())
    def create_session(self, key: str, ttl: int, take_over: bool) -> None:
        answers = self.ask(
            lambda pool: pool.create_session(key, ttl, take_over, self.now),
            lambda: self.model.create(key, ttl, take_over, self.now),
        )
        if answers:
            (info, taken_over), _, expected = answers
            assert (info.session_id, info.epoch, taken_over) == expected
            self.past += [(info.session_id, info.epoch - 1)] if taken_over else []

    @rule(session=who, sure=st.integers(0, 4))
    def delete_session(self, session: int, sure: int) -> None:
        who = self.session(session) if sure == 0 else self.past[0]
        answers = self.ask(lambda pool: pool.delete_session(*who), lambda: self.model.delete(*who))
        if answers:
            assert answers[0] == answers[2]
            self.past.append(who)

    @rule(passed=st.sampled_from([0, 1, 5, 60]))
    def expire_sessions(self, passed: int) -> None:
        self.now += passed
        answers = self.ask(lambda pool: pool.expire_sessions(self.now), lambda: self.model.expire(self.now))
        assert answers is not None
        assert answers[0] == answers[2]
        answers = self.ask(lambda pool: pool.expire_transfers(self.now), lambda: self.model.expire_transfers(self.now))
        assert answers is not None
        assert answers[0] == answers[2]

    @rule(session=who, count=st.sampled_from([1, 1, 2, 3, 6, 12]))
    def allocate(self, session: int, count: int) -> None:
        who = self.session(session)
        answers = self.ask(lambda pool: pool.allocate(*who, count), lambda: self.model.allocate(*who, count))
        if answers:
            refs, _, expected = answers
            assert list(zip(refs.block_ids.tolist(), refs.generations.tolist(), strict=True)) == expected

    @rule(session=who, indices=rows)
    def free(self, session: int, indices: list[int]) -> None:
        who = self.session(session)
        pairs = self.pairs(who, indices)
        refs = refs_of(pairs)
        self.ask(lambda pool: pool.free(*who, refs), lambda: self.model.release(*who, pairs))

    @rule(session=who)
    def free_all(self, session: int) -> None:
        """Drops all that a session holds outside its sequences, one reference each."""
        who = self.session(session)
        held = {i: b for i, b in self.model.blocks.items() if who[0] in b.references}
        pairs = [
            (i, b.generation) for i, b in held.items() if b.references[who[0]] > self.model.in_sequences(who[0], i)
        ]
        refs = refs_of(pairs)
        self.ask(lambda pool: pool.free(*who, refs), lambda: self.model.release(*who, pairs))

    @rule(session=who, indices=rows)
    def retain(self, session: int, indices: list[int]) -> None:
        who = self.session(session)
        pairs = self.pairs(who, indices)
        refs = refs_of(pairs)
        self.ask(lambda pool: pool.retain(*who, refs), lambda: self.model.retain(*who, pairs))

    @rule(session=who, indices=rows, stream=st.integers(0, 2), column=st.integers(1, 3))
    def commit(self, session: int, indices: list[int], stream: int, column: int) -> None:
        """Commits blocks outside of steps, under the names that sequences use."""
        who, tokens = self.session(session), column * self.model.block_tokens
        pairs = self.pairs(who, indices)
        boundaries = [tokens] * len(pairs)
        names = [Tokens(stream + row, 1).name(tokens, self.model.block_tokens) for row in range(len(pairs))]
        refs, column_of = refs_of(pairs), ints(boundaries)
        self.ask(
            lambda pool: pool.commit(*who, refs, "m", names, column_of, column_of),
            lambda: self.model.commit(*who, pairs, "m", names, boundaries, boundaries),
        )

    @rule(session=who, indices=rows)
    def evict(self, session: int, indices: list[int]) -> None:
        who = self.session(session)
        pairs = self.pairs(who, indices)
        refs = refs_of(pairs)
        answers = self.ask(lambda pool: pool.evict(*who, refs, "m", ()), lambda: self.model.evict(*who, pairs, "m", []))
        assert answers is None or (answers[0].unlisted, answers[0].freed) == answers[2]

    @rule(session=who, indices=rows)
    def condemn(self, session: int, indices: list[int]) -> None:
        pairs = self.pairs(self.session(session), indices)
        refs = refs_of(pairs)
        answers = self.ask(lambda pool: pool.condemn(refs), lambda: self.model.condemn(pairs))
        assert answers is not None
        assert answers[0] == answers[1] == refs_of(answers[2])

    @rule()
    def pardon(self) -> None:
        answers = self.ask(lambda pool: pool.pardon(), lambda: self.model.pardon())
        assert answers is not None
        assert answers[0] == answers[1] == answers[2]

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

    @precondition(lambda self: self.pins)
    @rule(index=st.integers(0, 5))
    def unpin(self, index: int) -> None:
        pin, twin_pin, expected = self.pins.pop(index % len(self.pins))
        self.pool.unpin(pin)
        self.twin.unpin(twin_pin)
        self.model.unpin(expected)
        self.model.settle_after_unpin([*pin.readers.tolist(), *pin.writers.tolist()])

    @rule()
    def look_at_twin(self) -> None:
        assert self.twin.digest() == self.pool.digest()

    def teardown(self) -> None:
        if hasattr(self, "twin"):
            self.look_at_twin()

    # What must be so after each

    @invariant()
    def agree(self) -> None:
        check_integrity(self.pool)
        listing = self.pool.list_blocks(0, len(self.model.blocks), list(BlockState))
        blocks = [self.model.blocks[block] for block in listing.refs.block_ids.tolist()]
        assert listing.refs.generations.tolist() == [block.generation for block in blocks]
        assert listing.reference_counts.tolist() == [sum(block.references.values()) for block in blocks]
        assert listing.prefix_hashes == [block.name[1] if block.name else b"" for block in blocks]
        assert self.pool.blocks.free().tolist() == self.model.free
        assert self.pool.blocks.evictable.block_ids().tolist() == self.model.evictable
        assert self.pool.usage() == self.model.usage()
        assert set(self.pool.sequences.tables) <= set(self.model.steps) <= set(self.model.sessions)
        assert self.folded.snapshot() == {
            block: (model.generation, model.references, model.name)
            for block, model in self.model.blocks.items()
            if model.generation
        }

    @invariant()
    def agree_on_sequences(self) -> None:
        for session_id, steps in self.model.steps.items():
            table = self.pool.sequences.tables[session_id]
            table.catch_up()
            assert (table.last_step, table.settled_step) == (steps.last_step, steps.settled_step)
            assert table.running_ids.tolist() == steps.running
            assert len(table) == len(steps.sequences)
            for sequence_id, sequence in steps.sequences.items():
                (slot,) = table.slots(ints([sequence_id]), "test").tolist()
                assert block_table(self.pool, session_id, sequence_id) == sequence.table
                assert table.num_computed[slot] == sequence.num_computed
                assert table.num_accepted[slot] == sequence.num_accepted
                assert table.namespaces[slot] == sequence.namespace
                assert (table.drafts[slot] >= 0) == (sequence.outstanding is not None)


def read(outcome: StepOutcome) -> dict[str, Any]:
    """Reads what the pool answers."""
    tables = outcome.tables
    width = len(tables.blocks) // len(tables.rows) if len(tables.rows) else 1
    blocks = list(zip(tables.blocks.block_ids.tolist(), tables.blocks.generations.tolist(), strict=True))
    windows = [blocks[begin : begin + width] for begin in range(0, len(blocks), width)]
    return {
        "admitted": list(zip(outcome.admitted_tokens.tolist(), outcome.admitted_blocks.tolist(), strict=True)),
        "changed": list(zip(tables.rows.tolist(), tables.running_columns.tolist(), windows, strict=True)),
        "post_copies": copy_rows(outcome.post_copies),
        "zeroed": outcome.zeroed_blocks.tolist(),
        "pre_copies": copy_rows(outcome.pre_copies),
        "published": outcome.published,
        "usage": outcome.usage,
    }


def written(expected: ModelOutcome, model: AlignModel) -> dict[str, Any]:
    """Writes what the model answers in the same way."""
    return {
        "admitted": expected.admitted,
        "changed": [
            (row, column, [(block, model.blocks[block].generation) for block in blocks])
            for row, column, blocks in expected.changed
        ],
        "post_copies": [(row, *moved) for row, moved in expected.post_copies],
        "zeroed": expected.zeroed,
        "pre_copies": [(row, *moved) for row, moved in expected.pre_copies],
        "published": expected.published,
        "usage": expected.usage,
    }


def sets(pin: Pin) -> tuple[set[int], set[int]]:
    """Reads a pin."""
    return set(pin.readers.tolist()), set(pin.writers.tolist())


StepMachine.TestCase.settings = machine_settings(50)
TestStepsAgainstModel = StepMachine.TestCase

pytestmark = pytest.mark.timeout(400)
