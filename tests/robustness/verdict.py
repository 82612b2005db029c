"""Is the history one that a correct server can have? Everything that speaks against it, in words."""

import base64
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from robustness.history import OTHERWISE, SAME, Fact
from robustness.lies import ACCEPTED
from robustness.ownership import Ownership
from robustness.prefixes import Prefixes
from robustness.replay import ContradictionError, Effect, SessionReplay
from robustness.scenario import BLOCK_TOKENS, NUM_SPEC, Scenario
from statepool import Execution, StatepoolError, errors
from statepool.v1 import sequence_pb2 as pb

UNTIMELY = frozenset({"UnavailableError", "DeadlineExceededError"})
"""What any call may get while the server or its connection stands still."""
PRECISE = UNTIMELY | {
    name
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, StatepoolError) and kind.reason
}
"""What a lie may get; other errors say that the server does not know what has happened to it."""
FAIR = UNTIMELY | {
    *("PoolExhaustedError", "OverloadedError", "DrainingError", "IncarnationMismatchError", "OwnerKeyInUseError"),
    *("SessionExpiredError", "SessionNotFoundError", "SessionFencedError", "StreamReplacedError", "QuotaExceededError"),
    *("PassFailedError", "StateLostError", "BlockBusyError"),
}
"""What an honest scheduler may get; other errors say that its books and the server's differ."""


@dataclass(slots=True)
class Verdict:
    """What a history comes to."""

    violations: list[str] = field(default_factory=list)
    """What no correct server does."""
    counts: Counter[str] = field(default_factory=Counter)
    """How much was seen."""
    certain: dict[int, list[bytes]] = field(default_factory=dict)
    """Prefix hashes that must be found after the run, by the incarnation of the server that has them."""


@dataclass(slots=True)
class _Session:
    """One session in one epoch."""

    name: str
    replay: SessionReplay
    pool: "_Pool"
    asked: tuple[int, pb.EngineStep] | None = None
    """When the step under way was asked for, and what it is."""
    unsettled: list[bytes] = field(default_factory=list)
    """Hashes that can be found when the next step is answered."""
    is_refuted: bool = False
    """Whether an answer contradicted the model, after which it has nothing more to say."""


@dataclass(slots=True)
class _Pool:
    """What clients know of one pool: of one server process, or of all that continue one another."""

    prefixes: Prefixes
    ownership: Ownership = field(default_factory=Ownership)
    last_steps: Counter[int] = field(default_factory=Counter)


class Judge:
    """Goes through a history once, in the order of time."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._is_torn = False
        self._verdict = Verdict()
        self._pools: list[_Pool] = []
        self._incarnations: dict[int, _Pool] = {}
        self._sessions: dict[tuple[int, int, int], _Session] = {}
        self._passes: dict[str, Fact] = {}
        self._takers: dict[str, Callable[[Fact], None]] = {
            "serving": self._serving,
            "torn": self._torn,
            "opened": self._opened,
            "inherited": self._inherited,
            "asked": self._asked,
            "answered": self._answered,
            "refused": self._refused,
            "repeated": self._repeated,
            "lost": self._lost,
            "began": self._began,
            "done": self._done,
            "killing": self._killing,
            "drained": self._drained,
            "lied": self._lied,
        }

    def judge(self, facts: Sequence[Fact]) -> Verdict:
        """Judges a history."""
        for fact in facts:
            self._verdict.counts[fact.kind] += 1
            if fact.kind in self._takers:
                self._takers[fact.kind](fact)
        for pool in self._pools:
            self._verdict.violations += pool.ownership.violations()
        self._verdict.certain = {number: pool.prefixes.certain() for number, pool in self._incarnations.items()}
        return self._verdict

    def _violated(self, fact: Fact, what: str) -> None:
        self._verdict.violations.append(f"{fact.process} at {fact.at_ns}: {what}")

    def _opened(self, fact: Fact) -> None:
        pool = self._pool_of(fact)
        replay = SessionReplay(BLOCK_TOKENS, NUM_SPEC, pool.last_steps[fact["session"]])
        name = f"session {fact['session']} epoch {fact['epoch']} of {fact.process}"
        self._sessions[_key(fact)] = _Session(name, replay, pool)

    def _inherited(self, fact: Fact) -> None:
        try:
            self._sessions[_key(fact)].replay.inherit(fact["last_step"], fact["sequences"])
        except ContradictionError as error:
            self._violated(fact, f"session {fact['session']} was taken over: {error}")

    def _asked(self, fact: Fact) -> None:
        session = self._sessions[_key(fact)]
        step = pb.EngineStep.FromString(base64.b64decode(fact["request"]))
        session.asked = fact.at_ns, step
        for prefix_hash in step.commits.prefix_hashes:
            session.pool.prefixes.offer(prefix_hash)

    def _answered(self, fact: Fact) -> None:
        session = self._sessions[_key(fact)]
        if session.is_refuted:
            return
        assert session.asked is not None
        asked_ns, step = session.asked
        for ref in session.replay.held():
            session.pool.ownership.used(ref, asked_ns)
        try:
            effect = session.replay.apply(step, pb.StepOutcome.FromString(base64.b64decode(fact["outcome"])))
        except ContradictionError as error:
            session.is_refuted = True
            self._violated(fact, f"step {fact['step']} of {session.name}: {error}")
            return
        self._took_effect(session, effect, asked_ns, fact)

    def _took_effect(self, session: _Session, effect: Effect, asked_ns: int, fact: Fact) -> None:
        pool = session.pool
        pool.last_steps[fact["session"]] = max(pool.last_steps[fact["session"]], fact["step"])
        for ref in effect.allocated:
            pool.ownership.allocated(ref, session.name, asked_ns, fact.at_ns)
        for hit in effect.hits:
            self._verdict.counts["searches"] += bool(hit.hashes)
            self._verdict.counts["hits"] += bool(hit.found)
            for violation in pool.prefixes.violations(hit, asked_ns):
                self._violated(fact, f"step {fact['step']} of {session.name}: {violation}")
        by_worker = self._scenario.execution is Execution.WORKER
        for prefix_hash in session.unsettled if by_worker else effect.committed:
            pool.prefixes.settle(prefix_hash, fact.at_ns)
        session.unsettled = effect.committed
        self._verdict.counts["commits"] += len(effect.committed)

    def _refused(self, fact: Fact) -> None:
        self._verdict.counts[f"refused: {fact['error']}"] += 1
        if fact["error"] not in FAIR:
            self._violated(fact, f"step {fact['step']}: {fact['error']}: {fact['message']}")

    def _repeated(self, fact: Fact) -> None:
        """A step was asked for again, beside the stream."""
        if fact["answer"] == OTHERWISE or fact["answer"] not in FAIR | {SAME}:
            self._violated(fact, f"step {fact['step']} of session {fact['session']} asked again: {fact['answer']}")

    def _lost(self, fact: Fact) -> None:
        self._verdict.counts[f"lost: {fact['error']}"] += 1
        if fact["error"] not in FAIR:
            self._violated(fact, f"a session ended with {fact['error']}: {fact['message']}")

    def _began(self, fact: Fact) -> None:
        self._passes[fact.process] = fact

    def _done(self, fact: Fact) -> None:
        self._verdict.counts["states compared"] += fact["compared"]
        for what in fact["wrong"]:
            self._violated(fact, f"stale read, session {fact['session']} step {fact['step']}: {what}")
        if fact["foreign"]:
            self._violated(fact, f"somebody else wrote into blocks {fact['foreign']} of session {fact['session']}")
        self._writes_ended(fact)

    def _killing(self, fact: Fact) -> None:
        """A worker that is killed within a pass may have written until then."""
        self._writes_ended(fact, of=fact["process"])

    def _writes_ended(self, fact: Fact, of: str = "") -> None:
        began = self._passes.pop(of or fact.process, None)
        if began is not None:
            for ref in zip(began["blocks"], began["generations"], strict=True):
                self._pool_of(began).ownership.used(ref, fact.at_ns)

    def _drained(self, fact: Fact) -> None:
        if fact["code"]:
            self._violated(fact, f"a server that was told to end ended with {fact['code']}")

    def _lied(self, fact: Fact) -> None:
        if fact["answer"] == ACCEPTED or fact["answer"] not in PRECISE:
            self._violated(fact, f"the lie {fact['lie']!r} got {fact['answer']}")

    def _torn(self, fact: Fact) -> None:
        """The journal of a killed server was damaged."""
        self._is_torn = self._scenario.recovers

    def _serving(self, fact: Fact) -> None:
        self._pool_of(fact)

    def _pool_of(self, fact: Fact) -> _Pool:
        """Finds the pool of a server: that of the server before, if servers recover, else one of its own."""
        incarnation: int = fact["incarnation"]
        if incarnation not in self._incarnations:
            self._incarnations[incarnation] = self._next_pool()
        return self._incarnations[incarnation]

    def _next_pool(self) -> _Pool:
        """Finds the pool of the next server. One whose journal is damaged may have kept committed blocks, or none."""
        if self._pools and self._scenario.recovers and not self._is_torn:
            return self._pools[-1]
        pool = _Pool(Prefixes(is_complete=self._scenario.is_roomy))
        if self._pools and self._is_torn:
            former = self._pools[-1]
            pool = _Pool(former.prefixes.remains(), last_steps=former.last_steps)
        self._is_torn = False
        self._pools.append(pool)
        return pool


def _key(fact: Fact) -> tuple[int, int, int]:
    return fact["incarnation"], fact["session"], fact["epoch"]
