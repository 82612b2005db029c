"""Guarantee: whatever is collected, refused, aborted or preempted, a builder makes steps that a server can apply."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from statepool import ALL_RUNNING, StepBuilder, StepOutcome, prefix_hashes
from statepool.v1 import sequence_pb2 as pb
from support.machines import machine_settings

BLOCK_TOKENS, SPEC = 4, 3
IDS = st.integers(0, 3)


@dataclass
class Told:
    """A sequence as the naive server knows it."""

    num_computed: int
    scheduled: tuple[int, int] | None = None
    hashes: list[bytes] = field(default_factory=list)
    """Hashes that were committed."""


class NaiveServer:
    """Applies steps row by row, and asserts that each can be."""

    def __init__(self) -> None:
        self.sequences: dict[int, Told] = {}
        self.running: list[int] = []

    def apply(self, step: dict[str, Any], room: int) -> StepOutcome:
        """Applies a step, with room for so many admissions."""
        if step["commit"] is not None:
            self._commit(step["commit"])
        for sequence in step["finish"]:
            del self.sequences[sequence]
            self.running = [other for other in self.running if other != sequence]
        admitted = step["admit"][:room]
        for row in admitted:
            assert row.sequence_id not in self.sequences
            self.sequences[row.sequence_id] = Told((row.prompt_tokens - 1) // BLOCK_TOKENS * BLOCK_TOKENS)
        if step["schedule"] is not None:
            self._schedule(step["schedule"])
        hits = [self.sequences[row.sequence_id].num_computed for row in admitted]
        return StepOutcome(pb.StepOutcome(admissions=pb.AdmissionResults(num_computed_tokens=hits)))

    def rows(self, ids: Any) -> list[int]:
        """Resolves the running list."""
        return self.running if ids is ALL_RUNNING else list(ids)

    def _commit(self, commit: Any) -> None:
        boundaries = zip(commit.boundary_tokens, commit.prefix_hashes, strict=True)
        reached = dict(zip(commit.hash_rows, boundaries, strict=True))
        rows = zip(self.rows(commit.sequence_ids), commit.accepted_tokens, strict=True)
        for row, (sequence, accepted) in enumerate(rows):
            told = self.sequences[sequence]
            assert told.scheduled is not None
            tokens, drafts = told.scheduled
            assert 1 <= accepted <= 1 + drafts
            written = told.num_computed + tokens - drafts
            told.num_computed, told.scheduled = written + accepted - 1, None
            boundary = told.num_computed // BLOCK_TOKENS * BLOCK_TOKENS
            assert (row in reached) == (boundary >= written)
            if row in reached:
                assert reached[row][0] == boundary
                told.hashes.append(reached[row][1])

    def _schedule(self, schedule: Any) -> None:
        ids = self.rows(schedule.sequence_ids)
        for sequence, tokens, drafts in zip(ids, schedule.num_tokens, schedule.num_draft_tokens, strict=True):
            told = self.sequences[sequence]
            assert told.scheduled is None
            told.scheduled = tokens, drafts
        self.running = list(ids)


class BuilderMachine(RuleBasedStateMachine):
    """An engine that drives a builder, while a step is under way or not."""

    @initialize()
    def begin(self) -> None:
        """Begins with nothing."""
        self.builder = StepBuilder(BLOCK_TOKENS)
        self.server = NaiveServer()
        self.tokens: dict[int, list[int]] = {}
        self.begun: set[int] = set()
        self.under_way: dict[str, Any] | None = None
        self.next_token = 0

    def _new_tokens(self, count: int) -> list[int]:
        self.next_token += count
        return list(range(self.next_token - count, self.next_token))

    @rule(sequence=IDS, length=st.integers(1, 11))
    def admit(self, sequence: int, length: int) -> None:
        """Begins a sequence that is not live, under an id that may have been used."""
        if sequence not in self.tokens:
            self.tokens[sequence] = self._new_tokens(length)
            self.builder.admit(sequence, self.tokens[sequence])

    @rule(sequence=IDS)
    def finish(self, sequence: int) -> None:
        """Ends a sequence at any moment."""
        if sequence in self.tokens:
            self.builder.finish(sequence)
            del self.tokens[sequence]
            self.begun.discard(sequence)

    @precondition(lambda self: self.under_way is None)
    @rule(sequence=IDS, budget=st.integers(1, 9), drafts=st.integers(0, SPEC))
    def schedule(self, sequence: int, budget: int, drafts: int) -> None:
        """Schedules a pass, also instead of another."""
        if sequence in self.begun and not self.builder.num_scheduled(sequence):
            if self.builder.num_left(sequence) > 1:
                self.builder.schedule_prefill(sequence, budget)
            elif self.builder.num_left(sequence) == 1:
                self.builder.schedule(sequence, 1 + drafts, drafts)

    @rule(sequence=IDS, accepted=st.integers(1, 1 + SPEC))
    def commit(self, sequence: int, accepted: int) -> None:
        """Takes the result of a pass that has run."""
        if sequence in self.begun and self.builder.num_scheduled(sequence):
            tokens, drafts = self.server.sequences[sequence].scheduled or (0, 0)
            is_last = tokens - drafts == self.builder.num_left(sequence)
            sampled = self._new_tokens(min(accepted, 1 + drafts)) if is_last else []
            self.tokens[sequence] += sampled
            self.builder.commit(sequence, np.array(sampled, np.int64) if accepted == 1 else sampled)

    @precondition(lambda self: self.under_way is None)
    @rule()
    def send(self) -> None:
        """Sends the step."""
        self.under_way = dict(self.builder.step())

    @precondition(lambda self: self.under_way is not None)
    @rule()
    def refused(self) -> None:
        """The server refuses it, and has changed nothing."""
        self.under_way = None

    @precondition(lambda self: self.under_way is not None)
    @rule(room=st.integers(0, 4))
    def applied(self, room: int) -> None:
        """The server applies it; those left out may be admitted again."""
        assert self.under_way is not None
        wanted = {row.sequence_id for row in self.under_way["admit"][:room]}
        outcome, self.under_way = self.server.apply(self.under_way, room), None
        for sequence in self.builder.applied(outcome):
            del self.tokens[sequence]
        waiting = {row.sequence_id for row in self.builder.step()["admit"]}
        self.begun |= (wanted & self.tokens.keys()) - waiting

    @invariant()
    def counters_are_those_of_the_server(self) -> None:
        """What was begun and has nothing to tell the server stands where the server has it."""
        if self.under_way is None and self.begun:
            commit = self.builder.step()["commit"]
            news = set() if commit is None else set(self.server.rows(commit.sequence_ids))
            for sequence in self.begun - news:
                told = self.server.sequences[sequence]
                assert self.builder.num_computed(sequence) == told.num_computed
                assert self.builder.num_scheduled(sequence) == (told.scheduled or (0, 0))[0]
                assert set(told.hashes) <= set(prefix_hashes(self.tokens[sequence], BLOCK_TOKENS))

    def teardown(self) -> None:
        """Nothing that was finished lives on at the server."""
        if not hasattr(self, "builder"):
            return
        for sequence in list(self.tokens):
            self.finish(sequence)
        for _ in range(2):
            self.under_way = dict(self.under_way or self.builder.step())
            self.applied(4)
        assert self.server.sequences == {}


BuilderMachine.TestCase.settings = machine_settings(40)
TestBuilder = BuilderMachine.TestCase
