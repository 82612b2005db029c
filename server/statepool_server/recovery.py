"""What a server leaves to the next one on the same folder, and how that one makes sense of it.

Everything that was acknowledged goes on: blocks, generations, sessions, sequences, remembered answers, memory work
under way, attached processes. The incarnation is new all the same, so that nobody goes on without noticing.

Where the journal is damaged, what happened after the damage is not known. Then a committed block is still what it was
if its generation, which lies in shared memory of its own, is the one that the journal tells: it was never free since.
Nothing else can be proven, so everything else is given up, and with it the memory: processes that still write it write
to memory that nobody uses any more.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import structlog

from statepool_server.arena import has_arenas
from statepool_server.assembly import Assembly
from statepool_server.journal.columns import read_column
from statepool_server.journal.encoding import EncodingError, decode, encode
from statepool_server.journal.journal import History
from statepool_server.limits import Limits
from statepool_server.planning import Plan
from statepool_server.recency import Ids
from statepool_server.service.attach_processes import Attacher
from statepool_server.service.core import PoolDescription
from statepool_server.service.ledger import DivergedError
from statepool_server.service.replays import ReplyState
from statepool_server.service.steps import AnswerState
from statepool_server.service.works import WorksState
from statepool_server.sessions import ids_before
from statepool_server.view import PoolState

FORMAT = 5
"""Format of snapshots and records; another one is not read."""

MAX_CONTINUED = 64
"""Incarnations before this one that are remembered."""

GENERATIONS = "generations.bin"
"""Name of the file of the blocks' generations."""

CHECKSUMS = "checksums.bin"
"""Name of the file of their checksums."""

_log = structlog.get_logger("statepool.recovery")


class ForeignStateError(RuntimeError):
    """The folder holds the state of another pool, which is not given up unless that is asked for."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What must be the same for memory and state to mean the same."""

    format: int
    """`FORMAT`."""
    fingerprint: str
    """Of the block layout."""
    arrangement: str
    """Of the arena."""
    block_count: int
    """Blocks, the null block included."""
    block_tokens: int
    """Tokens per block."""
    num_spec: int
    """Speculative tokens."""
    tp_size: int
    """Tensor-parallel size."""
    tp_ranks: list[int]
    """Local ranks."""

    @classmethod
    def of(cls, known: PoolDescription) -> "Identity":
        """Tells the identity of a pool."""
        layout = known.layout
        return cls(
            FORMAT,
            layout.block.fingerprint,
            layout.arrangement.value,
            layout.block_count,
            known.block_tokens,
            known.num_spec,
            known.tp_size,
            list(known.tp_ranks),
        )

    def differences(self, found: "Identity") -> list[str]:
        """Tells what is not the same, in the words of an operator."""
        named = {
            "--blocks": (found.block_count, self.block_count),
            "--block-tokens": (found.block_tokens, self.block_tokens),
            "--num-spec": (found.num_spec, self.num_spec),
            "--tp-size": (found.tp_size, self.tp_size),
            "--tp-ranks": tuple(",".join(map(str, each.tp_ranks)) for each in (found, self)),
            "--arrangement": (found.arrangement, self.arrangement),
            "model, dtypes or conv layout": (found.fingerprint[:8], self.fingerprint[:8]),
        }
        return [f"{name}: {theirs} there, {ours} here" for name, (theirs, ours) in named.items() if theirs != ours]


@dataclass(frozen=True, slots=True)
class _Named:
    identity: Identity


@dataclass(frozen=True, slots=True)
class ServerState:
    """Everything that outlives a server process, at a moment."""

    identity: Identity
    """Of the pool."""
    limits: Limits
    """Bounds of the requests that follow in the journal."""
    continued: list[int]
    """Incarnations whose state this is, the latest last; empty: nobody can go on."""
    pool: PoolState
    """The pool."""
    replies: list[ReplyState]
    """Remembered answers of single calls."""
    answers: list[AnswerState]
    """Remembered answers of steps."""
    works: WorksState
    """Memory work."""
    attachers: dict[int, Attacher]
    """Attached processes, by attachment id."""


@dataclass(frozen=True, slots=True, eq=False)
class Estate:
    """State recovered from a previous server."""

    state: ServerState
    """How things stand."""
    rescued: Ids | None
    """None: the arenas are good as they are. Else only these blocks are, and the memory must be given up."""


def dump(assembly: Assembly) -> bytes:
    """Writes down everything that outlives the process."""
    return encode(_state(assembly))


def load(assembly: Assembly, state: ServerState) -> None:
    """Takes over what a server has left; everything must be new. No work goes on before it is resumed."""
    core = assembly.core
    core.pool.load(state.pool)
    core.replays.load(state.replies)
    core.works.load(state.works)
    assembly.steps.load(state.answers)
    assembly.processes.load(state.attachers)
    core.continued_incarnations = tuple(state.continued)


def make_sense(history: History, plan: Plan, blank_of: Callable[[Plan], Assembly]) -> Estate | None:
    """Finds out how things stand.

    Args:
        history: What a server has left.
        plan: What this server is going to be.
        blank_of: Makes a server without memory, to run the acts of the journal again, within the bounds they had.

    Returns:
        What goes on; None: nothing does, since nothing is known.

    Raises:
        ForeignStateError: It is of another pool.
    """
    state = _read_state(history, plan)
    if state is None:
        return None
    blank = blank_of(replace(plan, limits=state.limits))
    load(blank, state)
    blank.core.goes_by(history.incarnation)
    is_whole, repeated = history.is_whole, 0
    try:
        for record in history.records:
            blank.core.ledger.repeat(record)
            repeated += 1
    except DivergedError as error:
        _log.error("the journal cannot be run again from here", records=repeated, error=str(error))
        is_whole = False
    blank.core.works.forget_begun()
    if is_whole:
        continued = [*state.continued, history.incarnation][-MAX_CONTINUED:]
        return Estate(replace(_state(blank), continued=continued), None)
    return _salvage(blank, read_column(plan.state_dir / GENERATIONS, blank.core.pool.blocks.block_count))


def forget_locks(folder: Path) -> None:
    """Removes the locks of processes that are no longer of interest."""
    for path in folder.glob("attached-*.lock"):
        path.unlink(missing_ok=True)


def _state(assembly: Assembly) -> ServerState:
    core = assembly.core
    return ServerState(
        identity=Identity.of(core.description),
        limits=core.limits,
        continued=list(core.continued_incarnations),
        pool=core.pool.dump(),
        replies=core.replays.dump(),
        answers=assembly.steps.dump(),
        works=core.works.dump(),
        attachers=assembly.processes.dump(),
    )


def _read_state(history: History, plan: Plan) -> ServerState | None:
    known = plan.description
    if history.snapshot is None:
        _log.error("begins anew: no snapshot of the state can be read", folder=str(plan.state_dir))
        return None
    try:
        identity = decode(history.snapshot, _Named).identity
        if identity.format != FORMAT:  # nobody can go on with it, after an upgrade for one
            _log.warning("begins anew: another version has written the state", format=identity.format)
            return None
        differences = Identity.of(known).differences(identity)
        if not plan.outlives_process:
            differences.append(f"--device: cpu there, {known.devices[0]} here")
        if differences:
            raise ForeignStateError(
                f"state-dir {plan.state_dir}: holds the state of another pool: {'; '.join(differences)}; give the "
                "settings of that pool or another --state-dir, or give that state up with --discard-state"
            )
        state = decode(history.snapshot, ServerState)
    except EncodingError as error:
        _log.error("begins anew: the snapshot cannot be read", error=str(error))
        return None
    if not has_arenas(known.layout.nbytes, known.tp_ranks, plan.state_dir):
        _log.error("begins anew: an arena is missing, or has another size", folder=str(plan.state_dir))
        return None
    return state


def _salvage(blank: Assembly, generations: Ids | None) -> Estate:
    """Keeps what can be proven although the journal is damaged."""
    pool = blank.core.pool
    lost = len(pool.sessions)
    for begun in blank.core.works.dump().under_way:
        pool.finish_work(begun.work, succeeded=False)
    known = np.zeros(pool.blocks.block_count, np.int64) if generations is None else generations
    rescued = pool.distrust(known, ids_before(time.monotonic_ns()))
    _log.error("the journal is damaged: sessions are lost", sessions=lost, rescued_blocks=len(rescued))
    state = _state(blank)
    nothing = WorksState([], [], state.works.last_number)
    state = replace(state, continued=[], replies=[], answers=[], works=nothing, attachers={})
    return Estate(state, rescued)
