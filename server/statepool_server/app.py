"""Puts a server together as planned, serves, and takes it down again."""

import asyncio
import contextlib
import gc
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import structlog

from statepool.units import format_bytes
from statepool_server import failpoints
from statepool_server.arena import StateDir, is_in_memory
from statepool_server.assembly import Assembly
from statepool_server.config import ServerConfig
from statepool_server.heap import keep_freed_memory
from statepool_server.journal.columns import new_column, read_column
from statepool_server.journal.journal import Journal
from statepool_server.listeners import Listeners
from statepool_server.memory import Memory
from statepool_server.planning import Plan
from statepool_server.recovery import (
    CHECKSUMS,
    GENERATIONS,
    Estate,
    ForeignStateError,
    ServerState,
    dump,
    forget_locks,
    load,
    make_sense,
)
from statepool_server.service.attach_listener import AttachListener
from statepool_server.service.attach_processes import AttachedProcesses
from statepool_server.service.copying import CopiesStuckError
from statepool_server.service.draining import draining_error
from statepool_server.service.journal_watch import JournalWatch
from statepool_server.service.stall_watch import StallWatch
from statepool_server.service.verifying import Verifier
from statepool_server.tracing import NO_TRACING, Tracing
from statepool_server.web_listener import web_listener

EXIT_STUCK = 3
"""Exit code of a server that was stopped while copies stood still."""

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_log = structlog.get_logger("statepool.server")


class _StartEndedError(Exception):
    """A signal has ended the server before it served."""


@contextlib.asynccontextmanager
async def serving(
    config: ServerConfig,
    plan: Plan,
    memory: Memory,
    stop: asyncio.Event,
    journal: Journal | None = None,
    state: ServerState | None = None,
) -> AsyncIterator[None]:
    """Serves until the block ends; then drains.

    Args:
        config: The configuration.
        plan: What it comes to.
        memory: The open arenas.
        stop: Set when a client has asked for the end.
        journal: Where to write down what happens; None: nowhere.
        state: What a server before this one has left; None: nothing.

    Raises:
        ValueError: An address cannot be bound.
        OSError: The journal cannot be begun.
        CopiesStuckError: Copies still run when all else has ended.
    """
    tracing = _open_tracing(config)
    assembly = Assembly.of(config, plan, memory, stop, tracing)
    core, processes, health, supervisor = assembly.core, assembly.processes, assembly.health, assembly.supervisor
    if state is not None:
        load(assembly, state)
        core.goes_by(core.incarnation)
        core.pool.prolong_leases(time.monotonic_ns() + round(config.recovery_grace * 1e9))
    async with contextlib.AsyncExitStack() as ends:  # what was begun last ends first
        ends.push_async_callback(asyncio.to_thread, tracing.close)
        if journal is not None:
            _keep_checksums(assembly.verifier, plan.state_dir / CHECKSUMS, continues=state is not None)
            journal.begin(core.incarnation, dump(assembly))
            core.pool.blocks.keep_generations_in(new_column(plan.state_dir / GENERATIONS, core.pool.blocks.block_count))
            core.ledger.write_to(journal, lambda: dump(assembly))
            ends.callback(_leave, journal, assembly)
        ends.push_async_callback(core.copies.close, config.drain_timeout)
        if assembly.nixl is not None:
            ends.push_async_callback(assembly.nixl.close)
            await assembly.nixl.start()
        ends.push_async_callback(assembly.peers.close)
        listeners = Listeners(config, plan, assembly)
        ends.push_async_callback(processes.close)
        listener = _listen(plan.attach_socket, processes, config.attach_timeout)
        ends.push_async_callback(listener.close)
        web = await web_listener(plan, assembly)
        ends.push_async_callback(web.close)
        core.works.resume()
        processes.resume()
        await health.starting()
        ends.push_async_callback(supervisor.close)
        await listeners.start()
        ends.push_async_callback(_drain, assembly, listeners, config.drain_timeout)
        gc.collect()
        gc.freeze()  # no later collection has to look at what was imported
        supervisor.run("reaper", "sessions no longer expire", assembly.reaper.run())
        supervisor.run("attach listener", "nothing can be attached any more", listener.run())
        supervisor.run("verifier", "checksums are neither taken nor compared", assembly.verifier.run())
        if assembly.nixl is not None:
            supervisor.run("nixl", "states neither come nor go over NIXL", assembly.nixl.run())
        if plan.access.is_given:
            supervisor.run("access", "streams of callers who may not any more go on", assembly.calls.lasting.run())
        if journal is not None:
            full = JournalWatch(journal, core.ledger, health)
            supervisor.run("journal", "the journal is no longer shortened", full.run())
        watch = StallWatch(core.copies, health, config.copy_stall_timeout)
        supervisor.run("stall watch", "copies that stand still go unnoticed", watch.run())
        supervisor.run("heartbeat", "a loop that stands still is no longer noticed", assembly.heartbeat.run())
        await health.ready()
        _tell(plan, assembly, listeners, web.port)
        yield
    _log.info("stopped")


def _tell(plan: Plan, assembly: Assembly, listeners: Listeners, metrics_port: int | None) -> None:
    """Logs that the server serves, and what."""
    core = assembly.core
    _log.info(
        "serving",
        addresses=listeners.targets,
        admin_addresses=listeners.admin_targets,
        tls=plan.certificates is not None,
        model_type=plan.description.model_type,
        blocks=plan.description.layout.block_count,
        arena_bytes=plan.description.layout.nbytes,
        ranks=list(plan.description.tp_ranks),
        incarnation=f"{core.incarnation:016x}",
        metrics_port=metrics_port,
        continues=[f"{incarnation:016x}" for incarnation in core.continued_incarnations[-1:]],
    )


async def _drain(assembly: Assembly, listeners: Listeners, seconds: float) -> None:
    """Lets what has begun come to an end, and takes no more calls."""
    drain = assembly.drain
    drain.begin(stop_within=seconds)
    await drain.drained.wait()
    assembly.calls.lasting.end(draining_error())
    await listeners.stop(drain.seconds_left)


def _keep_checksums(verifier: Verifier, path: Path, *, continues: bool) -> None:
    """Keeps checksums where the next server finds them; before there is a journal, which tells whose they are."""
    former = read_column(path, verifier.nbytes // 8) if continues else None
    verifier.keep_in(new_column(path, verifier.nbytes // 8), former)


def _leave(journal: Journal, assembly: Assembly) -> None:
    """Leaves a state that the next server can read at once; without room, what was written so far tells the same."""
    try:
        journal.begin(assembly.core.incarnation, dump(assembly))
    except OSError as error:
        _log.warning("no snapshot is left behind, only the journal", error=str(error))


async def run(config: ServerConfig) -> None:
    """Serves until SIGTERM or SIGINT, or until a client has it drained and stopped.

    Raises:
        ValueError: The configuration cannot be.
        ArenaError: The memory cannot be had.
        ForeignStateError: The folder holds the state of another pool.
        OSError: The journal cannot be begun.
    """
    keep_freed_memory()
    plan = Plan.of(config)
    for address in (*plan.addresses, *plan.admin_addresses):
        address.refuse_if_served()
    stop = asyncio.Event()
    # Handlers of the loop would be run when it turns, which is after all of the start.
    former = {number: signal.signal(number, lambda *_: stop.set()) for number in _STOP_SIGNALS}
    try:
        await _run(config, plan, stop)
    except _StartEndedError:
        _log.info("stopped before it served")
    except BaseException:
        for number, handler in former.items():
            signal.signal(number, handler)
        raise
    for signal_number in _STOP_SIGNALS:  # a second signal must not turn a clean end into a death by signal
        asyncio.get_running_loop().remove_signal_handler(signal_number)
        signal.signal(signal_number, signal.SIG_IGN)


async def _run(config: ServerConfig, plan: Plan, stop: asyncio.Event) -> None:
    def check() -> None:
        failpoints.reach("start")
        if stop.is_set():
            raise _StartEndedError

    with contextlib.ExitStack() as opened:
        opened.callback(StateDir(plan.state_dir).close)
        journal = Journal(plan.state_dir, config.journal_bytes)
        opened.callback(journal.close)
        estate = _estate(config, plan, journal)
        memory = _open_memory(config, plan, estate, check)
        opened.callback(memory.close, keep=plan.outlives_process)
        kept, state = (journal if plan.outlives_process else None), (estate.state if estate else None)
        for signal_number in _STOP_SIGNALS:
            asyncio.get_running_loop().add_signal_handler(signal_number, stop.set)
        try:
            async with serving(config, plan, memory, stop, kept, state):
                await stop.wait()
        except CopiesStuckError as error:
            _log.critical("ends in spite of its copies", error=str(error))
            os._exit(EXIT_STUCK)  # neither can their threads be joined, nor their memory be given back under them


def _estate(config: ServerConfig, plan: Plan, journal: Journal) -> Estate | None:
    """Reads what a server has left in the folder; removes it where it cannot be used as it is.

    Raises:
        ForeignStateError: It is of another pool, and nobody has said that it may go.
    """
    history = journal.read() if config.recovery else None
    estate = None
    if history is not None:
        memory = Memory.none(plan.description.layout)
        try:
            estate = make_sense(history, plan, lambda former: Assembly.of(config, former, memory, asyncio.Event()))
        except ForeignStateError as error:
            if not config.discard_state:
                raise
            _log.warning("begins anew", error=str(error))
    if estate is None or estate.rescued is not None:  # who dies from here on has left nothing, rather than half of it
        journal.remove()
        forget_locks(plan.state_dir)
    return estate


def _open_memory(config: ServerConfig, plan: Plan, estate: Estate | None, check: Callable[[], None]) -> Memory:
    known = plan.description
    all_bytes = known.layout.nbytes * len(known.tp_ranks)
    if "cpu" in known.devices and not is_in_memory(plan.state_dir):
        _log.warning("states would be written to a disk: state-dir is not on tmpfs", folder=str(plan.state_dir))
    _log.info("taking memory", bytes=all_bytes, size=format_bytes(all_bytes), devices=sorted(set(known.devices)))

    def opened(*, is_kept: bool) -> Memory:
        return Memory.open(
            known.layout,
            tp_ranks=known.tp_ranks,
            devices=known.devices,
            folder=plan.state_dir,
            engine=config.copy_engine,
            threads=config.copy_threads,
            is_kept=is_kept,
            saves=plan.outlives_process,
            check=check,
        )

    if estate is None or estate.rescued is None:
        return opened(is_kept=estate is not None)
    former = opened(is_kept=True)
    memory = opened(is_kept=False)
    memory.rescue(former, estate.rescued)
    former.close(keep=True)  # its files are gone already: those there are the new ones
    return memory


def _open_tracing(config: ServerConfig) -> Tracing:
    if config.tracing == "off":
        return NO_TRACING
    try:
        from statepool_server.otel import OpenTelemetry  # an extra, which takes a quarter of a second to import
    except ImportError as error:
        raise ValueError(f"tracing {config.tracing}: install statepool[otel] ({error})") from error
    return OpenTelemetry()


def _listen(path: Path, processes: AttachedProcesses, timeout: float) -> AttachListener:
    try:
        return AttachListener(path, processes, timeout)
    except OSError as error:  # a path of more than 107 bytes, for one
        raise ValueError(f"attach socket {path}: cannot be bound: {error}") from error
