"""A second domain that is told what the server was told, in the same order: it must answer the same, digests included.

That order is known where one scheduler at a time drives the whole pool (`Scenario.is_alone`). What was asked and not
answered may have been applied or not: both are followed until what comes next rules one of them out.
"""

import base64
import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

from robustness.history import Fact
from robustness.scenario import BLOCK_TOKENS, NUM_SPEC, RANKS, Scenario
from statepool.errors import PoolExhaustedError, StatepoolError
from statepool.v1 import sequence_pb2 as pb
from statepool_server.blocks import BlockState
from statepool_server.config import ServerConfig
from statepool_server.convert import Convert
from statepool_server.planning import Plan
from statepool_server.pool import Pool, PoolConfig
from statepool_server.step_convert import StepConvert, outcome_to_wire
from support.folding import Folded

_TTL_NS = 2**62
"""No lease ends in such a run."""
_OWNER = "owner"


class Twin:
    """One possible course of events."""

    def __init__(self, pool: Pool, folded: Folded, convert: StepConvert, session: tuple[int, int] = (0, 0)) -> None:
        self._pool = pool
        self._folded = folded
        self._convert = convert
        self._session = session

    @classmethod
    def of(cls, scenario: Scenario, model: Path) -> "Twin":
        """Builds a pool as the server of a run does.

        Args:
            scenario: The run.
            model: Its model's config.json.
        """
        folded = Folded()
        config = PoolConfig(block_count=scenario.blocks, block_tokens=BLOCK_TOKENS, num_spec=NUM_SPEC)
        pool = Pool(config, folded.apply)
        limits = Plan.of(ServerConfig(model_config=str(model), blocks=scenario.blocks, tp_size=RANKS)).limits
        return cls(pool, folded, StepConvert(Convert(limits, 0), limits))

    def fork(self) -> "Twin":
        """Makes another one of the same past."""
        pool, folded = copy.deepcopy((self._pool, self._folded))  # together: the one tells the other
        return Twin(pool, folded, self._convert, self._session)

    def folds(self) -> bool:
        """Tells whether the events so far, folded, give the blocks as they are."""
        rows = self._pool.list_blocks(0, self._pool.blocks.block_count, list(BlockState))
        columns = (rows.refs.block_ids, rows.refs.generations, rows.reference_counts)
        blocks = list(zip(*(column.tolist() for column in columns), rows.prefix_hashes, strict=True))
        known = [
            (block, generation, sum(references.values()), name[1] if name else b"")
            for block, (generation, references, name) in sorted(self._folded.snapshot().items())
        ]
        return known == [row for row in blocks if row[1]]

    def open(self, session_id: int, epoch: int, *, taken_over: bool) -> bool:
        """Opens a session, or takes it over, as often as it takes; returns whether it is the one that was answered."""
        if not taken_over:
            self.close()
        if not self._session[0]:
            self._pool.sessions.skip(session_id - 1)  # which it has from the clock
        while self._session < (session_id, epoch):
            info, _ = self._pool.create_session(_OWNER, _TTL_NS, True, 0)
            self._session = info.session_id, info.epoch
        return self._session == (session_id, epoch)

    def close(self) -> None:
        """Ends the session, if there is one."""
        if self._session[0] and self._pool.sessions.find(self._session[0]) is not None:
            self._pool.delete_session(*self._session)

    def last_step(self) -> int:
        """Tells the number of the session's last step."""
        return self._pool.last_steps(self._session[0])[0]

    def step(self, request: pb.EngineStep) -> pb.StepOutcome | StatepoolError:
        """Applies a step, its memory work included; returns the answer, without the usage."""
        try:
            outcome = self._pool.step(*self._session, self._convert.step(request))
        except StatepoolError as error:
            return error
        answer = outcome_to_wire(outcome)
        if outcome.work is not None:
            answer.published_blocks += self._pool.finish_work(outcome.work).published
        return answer


class Courses:
    """All courses of events that the history so far allows."""

    def __init__(self, scenario: Scenario, model: Path) -> None:
        """Begins before the first call.

        Args:
            scenario: The run.
            model: Its model's config.json.
        """
        self._first = Twin.of(scenario, model)
        self._recovers = scenario.recovers
        self._incarnation = 0
        self._twins = [self._first.fork()]
        self._pending: pb.EngineStep | None = None

    def follow(self, facts: Sequence[Fact]) -> Iterator[str]:
        """Follows a history; yields where no course is left, which ends it."""
        takers = {
            "opened": self._opened,
            "asked": self._asked,
            "answered": self._answered,
            "refused": self._refused,
            "inherited": self._inherited,
        }
        for fact in facts:
            if fact.kind in takers:
                takers[fact.kind](fact)
            if not self._twins:
                yield f"{fact.process} at {fact.at_ns}: no course of events leads to {fact.kind} {_shown(fact)}"
                return
        if not all(twin.folds() for twin in self._twins):
            yield "the events of the twin do not fold to its blocks"

    def _opened(self, fact: Fact) -> None:
        self._settle_pending()
        if fact["incarnation"] != self._incarnation and not self._recovers:
            self._twins = [self._first.fork()]
        self._incarnation = fact["incarnation"]
        self._twins = [
            twin for twin in self._twins if twin.open(fact["session"], fact["epoch"], taken_over=fact["taken_over"])
        ]

    def _inherited(self, fact: Fact) -> None:
        """A new owner knows how far the session is: a course that is further, or not so far, is none."""
        self._twins = [twin for twin in self._twins if twin.last_step() == fact["last_step"]]

    def _asked(self, fact: Fact) -> None:
        self._pending = pb.EngineStep.FromString(base64.b64decode(fact["request"]))

    def _answered(self, fact: Fact) -> None:
        expected = pb.StepOutcome.FromString(base64.b64decode(fact["outcome"]))
        expected.ClearField("usage")
        assert self._pending is not None
        self._twins = [twin for twin in self._twins if twin.step(self._pending) == expected]
        self._pending = None

    def _refused(self, fact: Fact) -> None:
        """A full pool refuses in every course; other refusals leave open whether the step was applied before."""
        if fact["error"] == PoolExhaustedError.__name__:
            assert self._pending is not None
            pending, self._pending = self._pending, None
            self._twins = [twin for twin in self._twins if isinstance(twin.step(pending), PoolExhaustedError)]

    def _settle_pending(self) -> None:
        """Follows both courses of a step that was never answered: that it was applied, and that it was not."""
        if self._pending is not None:
            applied = [twin.fork() for twin in self._twins]
            for twin in applied:
                twin.step(self._pending)
            self._twins += applied
        self._pending = None


def _shown(fact: Fact) -> str:
    return ", ".join(f"{name} {fact[name]}" for name in ("session", "epoch", "step") if name in fact.facts)
