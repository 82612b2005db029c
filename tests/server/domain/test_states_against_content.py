"""Guarantee: a pass starts from its sequence's state, and a block that can be found holds the state of its boundary.

At any moment, whoever copies, and however late the worker is. Contents are symbols; the planned copies and simulated
passes move them.
"""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from statepool.errors import PoolExhaustedError, StepOutOfOrderError
from statepool.refs import BlockRefs
from statepool_server.integrity import check_integrity
from statepool_server.pool import Pool, PoolConfig
from support.machines import machine_settings
from support.step_choices import Choices, Tokens
from support.symbolic_engine import SymbolicEngine
from support.symbolic_memory import SymbolicMemory

choices = st.binary(min_size=48, max_size=48)
who = st.integers(0, 1)
BYSTANDER = (3, 1)


class ContentMachine(RuleBasedStateMachine):
    """Two engines share a pool: the worker copies for one, the server for the other; a bystander takes what is free."""

    @initialize(sizes=st.sampled_from([(4, 0), (4, 2), (4, 3), (1, 0), (2, 1), (16, 1)]), blocks=st.integers(10, 40))
    def begin(self, sizes: tuple[int, int], blocks: int) -> None:
        """Opens the three sessions."""
        block_tokens, spec = sizes
        self.pool = Pool(PoolConfig(blocks, block_tokens, num_spec=spec))
        self.memory = SymbolicMemory(block_tokens, spec, self.pool.blocks.committed)
        for _ in range(3):
            self.pool.create_session("", 100, False, 0)
        self.engines = [
            SymbolicEngine(self.pool, self.memory, (1, 1), by_worker=True),
            SymbolicEngine(self.pool, self.memory, (2, 1), by_worker=False),
        ]
        self.taken: list[BlockRefs] = []

    @rule(engine=who, data=choices)
    def step(self, engine: int, data: bytes) -> None:
        """Lets an engine ask for a step."""
        self._step(self.engines[engine], Choices(data))

    @rule(data=st.binary(min_size=240, max_size=240))
    def steps(self, data: bytes) -> None:
        """Lets the engines take turns, and their workers follow at some distance."""
        for at in range(0, len(data), 24):
            turn = Choices(data[at:] + data[:at])
            engine = self.engines[turn.below(2)]
            self._step(engine, turn)
            while len(engine.queue) > turn.pick([0, 0, 1, 2]):
                engine.work()
            self.found_blocks_hold_their_states()

    def _step(self, engine: SymbolicEngine, chosen: Choices) -> None:
        try:
            engine.step(chosen)
        except PoolExhaustedError:
            pass
        except StepOutOfOrderError:
            assert engine is self.engines[1]
            while engine.queue:
                engine.work()

    @rule(engine=who)
    def work(self, engine: int) -> None:
        """Lets a worker do the next step that it has not done yet."""
        self.engines[engine].work()

    @rule(engine=who)
    def serve(self, engine: int) -> None:
        """Lets the server do the copies that it owes."""
        self.engines[engine].serve()

    @rule(engine=who, data=choices)
    def receive(self, engine: int, data: bytes) -> None:
        """Lets a state come from another pool."""
        self.engines[engine].receive(Choices(data))

    @rule(count=st.integers(1, 6))
    def take(self, count: int) -> None:
        """Lets the bystander write into whatever blocks it gets."""
        if count <= self.pool.usage().free + self.pool.usage().evictable:
            self.taken.append(self.pool.allocate(*BYSTANDER, count))
            for block in self.taken[-1].block_ids.tolist():
                self.memory.spoil(block)

    @rule()
    def give_back(self) -> None:
        """Lets the bystander free its blocks."""
        while self.taken:
            self.pool.free(*BYSTANDER, self.taken.pop())

    @invariant()
    def found_blocks_hold_their_states(self) -> None:
        """Compares every block that can be found with what its name promises."""
        for _, name, block in self.pool.prefixes.items():
            stream, tokens = map(int, name.split(b":"))
            assert self.memory.holds(block, Tokens(stream, 1), tokens)

    @invariant()
    def pool_is_whole(self) -> None:
        """Checks the pool itself."""
        check_integrity(self.pool)


ContentMachine.TestCase.settings = machine_settings(30)
TestStatesByContent = ContentMachine.TestCase

pytestmark = pytest.mark.timeout(400)
