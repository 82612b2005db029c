"""Puts a server together as planned, serves, and takes it down again."""

import asyncio
import contextlib
import gc
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import grpc
import structlog
from grpc_channelz.v1 import channelz
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from statepool.v1 import admin_pb2, block_pb2, pool_pb2, sequence_pb2, session_pb2
from statepool_server.addresses import Address
from statepool_server.arena import StateDir
from statepool_server.assembly import Assembly
from statepool_server.config import ServerConfig
from statepool_server.journal.columns import new_column
from statepool_server.journal.journal import Journal
from statepool_server.limits import Limits
from statepool_server.memory import Memory
from statepool_server.planning import Plan
from statepool_server.recovery import GENERATIONS, Estate, ServerState, dump, forget_locks, load, make_sense
from statepool_server.service.attach_listener import AttachListener
from statepool_server.service.attach_processes import AttachedProcesses

_DESCRIPTORS = {
    name: module.DESCRIPTOR.services_by_name[name]
    for name, module in {
        "AdminService": admin_pb2,
        "BlockService": block_pb2,
        "PoolService": pool_pb2,
        "SequenceService": sequence_pb2,
        "SessionService": session_pb2,
    }.items()
}
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_log = structlog.get_logger("statepool.server")


@contextlib.asynccontextmanager
async def serving(
    config: ServerConfig, plan: Plan, memory: Memory, journal: Journal | None = None, state: ServerState | None = None
) -> AsyncIterator[grpc.aio.Server]:
    """Serves until the block ends; then drains.

    Args:
        config: The configuration.
        plan: What it comes to.
        memory: The open arenas.
        journal: Where to write down what happens; None: nowhere.
        state: What a server before this one has left; None: nothing.

    Yields:
        The started server.

    Raises:
        ValueError: An address cannot be bound.
        OSError: The journal cannot be begun.
    """
    assembly, health, server = Assembly.of(config, plan, memory), health_aio.HealthServicer(), _new_server(plan.limits)
    core, calls, processes = assembly.core, assembly.calls, assembly.processes
    if state is not None:
        load(assembly, state)
        core.goes_by(core.incarnation)
        core.pool.prolong_leases(time.monotonic_ns() + round(config.recovery_grace * 1e9))
    for name, servicer in assembly.servicers.items():
        calls.register(server, _DESCRIPTORS[name], servicer)
    _add_standard_services(server, health)
    _bind(server, plan.addresses)
    listener = _listen(plan.attach_socket, processes, config.attach_timeout)
    if journal is not None:
        journal.begin(core.incarnation, dump(assembly))
        core.pool.blocks.keep_generations_in(new_column(plan.state_dir / GENERATIONS, core.pool.blocks.block_count))
        core.ledger.write_to(journal, lambda: dump(assembly))
    core.works.resume()
    processes.resume()
    await server.start()
    gc.collect()
    gc.freeze()  # torch's modules are a million objects that no later collection has to look at
    background = [
        asyncio.create_task(supervised(assembly.reaper.run(), health, "sessions no longer expire")),
        asyncio.create_task(supervised(listener.run(), health, "nothing can be attached any more")),
        asyncio.create_task(supervised(assembly.verifier.run(), health, "checksums are neither taken nor compared")),
    ]
    await _set_health(health, health_pb2.HealthCheckResponse.SERVING)
    _log.info(
        "serving",
        addresses=[address.target for address in plan.addresses],
        model_type=plan.description.model_type,
        blocks=plan.description.layout.block_count,
        arena_bytes=plan.description.layout.nbytes,
        ranks=list(plan.description.tp_ranks),
        incarnation=f"{core.incarnation:016x}",
        continues=[f"{incarnation:016x}" for incarnation in core.continued_incarnations[-1:]],
    )
    try:
        yield server
    finally:
        _log.info("draining", timeout_s=config.drain_timeout)
        calls.draining.set()
        await health.enter_graceful_shutdown()
        core.waiting.close()
        await assembly.streams.drain(config.drain_timeout)
        await server.stop(config.drain_timeout)
        for task in background:
            task.cancel()
        await listener.close()
        await processes.close()
        await core.copies.close()
        if journal is not None:
            journal.begin(core.incarnation, dump(assembly))
        _log.info("stopped")


async def run(config: ServerConfig) -> None:
    """Serves until SIGTERM or SIGINT.

    Raises:
        ValueError: The configuration cannot be.
        ArenaError: The memory cannot be had.
        OSError: The journal cannot be begun.
    """
    plan = Plan.of(config)
    for address in plan.addresses:
        address.refuse_if_served()
    stop = asyncio.Event()
    for signal_number in _STOP_SIGNALS:
        asyncio.get_running_loop().add_signal_handler(signal_number, stop.set)
    with contextlib.ExitStack() as opened:
        opened.callback(StateDir(plan.state_dir).close)
        journal = Journal(plan.state_dir, config.journal_bytes)
        opened.callback(journal.close)
        estate = _estate(config, plan, journal)
        memory = _open_memory(config, plan, estate)
        opened.callback(memory.close, keep=plan.outlives_process)
        kept, state = (journal if plan.outlives_process else None), (estate.state if estate else None)
        async with serving(config, plan, memory, kept, state):
            await stop.wait()
    for signal_number in _STOP_SIGNALS:  # a second signal must not turn a clean end into a death by signal
        asyncio.get_running_loop().remove_signal_handler(signal_number)
        signal.signal(signal_number, signal.SIG_IGN)


def _estate(config: ServerConfig, plan: Plan, journal: Journal) -> Estate | None:
    """Reads what a server has left in the folder; removes it where it cannot be used as it is."""
    history = journal.read() if plan.outlives_process else None
    estate = None
    if history is not None:
        estate = make_sense(history, plan, Assembly.of(config, plan, Memory.none(plan.description.layout)))
    if estate is None or estate.rescued is not None:  # who dies from here on has left nothing, rather than half of it
        journal.remove()
        forget_locks(plan.state_dir)
    return estate


def _open_memory(config: ServerConfig, plan: Plan, estate: Estate | None) -> Memory:
    known = plan.description

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
        )

    if estate is None or estate.rescued is None:
        return opened(is_kept=estate is not None)
    former = opened(is_kept=True)
    memory = opened(is_kept=False)
    memory.rescue(former, estate.rescued)
    former.close(keep=True)  # its files are gone already: those there are the new ones
    return memory


def _new_server(limits: Limits) -> grpc.aio.Server:
    return grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", limits.max_message_bytes),
            ("grpc.max_send_message_length", limits.max_message_bytes),
            ("grpc.so_reuseport", 0),  # two servers on one port would each see half of the calls
        ]
    )


def _add_standard_services(server: grpc.aio.Server, health: health_aio.HealthServicer) -> None:
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    channelz.add_channelz_servicer(server)
    names = [descriptor.full_name for descriptor in _DESCRIPTORS.values()]
    standard = (health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, "grpc.channelz.v1.Channelz")
    reflection.enable_server_reflection([*names, *standard, reflection.SERVICE_NAME], server)


def _bind(server: grpc.aio.Server, addresses: tuple[Address, ...]) -> None:
    for address in addresses:
        if address.socket_path is not None:
            address.socket_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        former = os.umask(0o007)  # a socket is for its user and group
        try:
            server.add_insecure_port(address.target)
        except RuntimeError as error:
            raise ValueError(f"listen {address.target}: cannot be bound: {error}") from error
        finally:
            os.umask(former)


def _listen(path: Path, processes: AttachedProcesses, timeout: float) -> AttachListener:
    try:
        return AttachListener(path, processes, timeout)
    except OSError as error:  # a path of more than 107 bytes, for one
        raise ValueError(f"attach socket {path}: cannot be bound: {error}") from error


async def _set_health(
    health: health_aio.HealthServicer, status: "health_pb2.HealthCheckResponse.ServingStatus"
) -> None:
    for name in ("", *(descriptor.full_name for descriptor in _DESCRIPTORS.values())):
        await health.set(name, status)


async def supervised(work: Awaitable[None], health: health_aio.HealthServicer, loss: str) -> None:
    """Runs what a server cannot do without: its death is told to everybody who asks for health.

    Args:
        work: Ends only when it is cancelled.
        health: The health service.
        loss: What the server no longer does when the work has died.
    """
    try:
        await work
    except Exception:
        _log.exception(f"background work died: {loss}")
        await _set_health(health, health_pb2.HealthCheckResponse.NOT_SERVING)
        raise
