"""Puts a server together as planned, serves, and takes it down again."""

import asyncio
import contextlib
import gc
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import structlog
from grpc_channelz.v1 import channelz
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from statepool.v1 import admin_pb2, block_pb2, pool_pb2, sequence_pb2, session_pb2
from statepool_server.addresses import Address
from statepool_server.config import ServerConfig
from statepool_server.limits import Limits
from statepool_server.memory import Memory
from statepool_server.planning import Plan
from statepool_server.pool import Pool, PoolConfig
from statepool_server.service.admin_service import AdminService
from statepool_server.service.attach_listener import AttachListener
from statepool_server.service.attach_processes import AttachedProcesses
from statepool_server.service.block_service import BlockService
from statepool_server.service.calls import Calls
from statepool_server.service.copying import CopyThreads
from statepool_server.service.core import Core
from statepool_server.service.draining import Drain, draining_error
from statepool_server.service.health import Health
from statepool_server.service.heartbeat import Heartbeat
from statepool_server.service.pool_service import PoolService
from statepool_server.service.reaper import Reaper
from statepool_server.service.schedule_streams import ScheduleStreams
from statepool_server.service.sequence_service import SequenceService
from statepool_server.service.session_service import SessionService
from statepool_server.service.stalls import Stalls
from statepool_server.service.steps import Steps
from statepool_server.service.supervision import Supervisor

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
MAX_METADATA_BYTES = 8192
"""Of a call; ours have none, and proxies add little."""

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_log = structlog.get_logger("statepool.server")


@contextlib.asynccontextmanager
async def serving(config: ServerConfig, plan: Plan, memory: Memory, stop: asyncio.Event) -> AsyncIterator[None]:
    """Serves until the block ends; then drains.

    Args:
        config: The configuration.
        plan: What it comes to.
        memory: The open arenas.
        stop: Set when a client has asked for the end.

    Raises:
        ValueError: An address cannot be bound.
    """
    limits = plan.limits
    pool = Pool(
        PoolConfig(
            block_count=plan.description.layout.block_count,
            block_tokens=plan.description.block_tokens,
            max_sessions=limits.max_sessions,
            num_spec=plan.description.num_spec,
            max_sequences=limits.max_sequences,
            max_attachments=limits.max_attachments,
        )
    )
    copies = CopyThreads(config.copy_threads, config.max_queued_copies)
    core = Core(description=plan.description, limits=limits, pool=pool, memory=memory, copies=copies)
    health = Health(descriptor.full_name for descriptor in _DESCRIPTORS.values())
    supervisor, drain, stalls = Supervisor(health.not_ready), Drain(core, health, stop), Stalls(config.stall_timeout)
    calls, reaper, heartbeat = Calls(core, drain.begun), Reaper(core), Heartbeat()
    steps, streams = Steps(core, drain.begun), ScheduleStreams(core, config.pressure, stalls)
    core.block_listeners += [streams.blocks_changed, drain.progressed]
    core.session_listeners += [steps.sessions_ended, streams.sessions_changed]
    drain.on_begin.append(streams.going_away)
    processes = AttachedProcesses(core, str(plan.attach_socket), config.attach_timeout)
    core.session_listeners.append(lambda _ended: processes.fences_changed())
    server = _new_server(limits, config.max_connections)
    servicers = {
        "AdminService": AdminService(
            core,
            counts=calls.counts,
            processes=processes,
            parts=supervisor.parts,
            heartbeat=heartbeat,
            drain=drain,
            drain_timeout=config.drain_timeout,
        ),
        "BlockService": BlockService(core, stalls),
        "PoolService": PoolService(core, processes),
        "SequenceService": SequenceService(core, steps, streams, stalls),
        "SessionService": SessionService(core, reaper.lease_changed, drain.over, stalls),
    }
    for name, servicer in servicers.items():
        calls.register(server, _DESCRIPTORS[name], servicer)
    _add_standard_services(server, health)
    _bind(server, plan.addresses)
    listener = _listen(plan.attach_socket, processes, config.attach_timeout)
    await health.starting()
    await server.start()
    gc.collect()
    gc.freeze()  # torch's modules are a million objects that no later collection has to look at
    supervisor.run("reaper", "sessions no longer expire", reaper.run())
    supervisor.run("attach listener", "nothing can be attached any more", listener.run())
    supervisor.run("heartbeat", "a loop that stands still is no longer noticed", heartbeat.run())
    await health.ready()
    _log.info(
        "serving",
        addresses=[address.target for address in plan.addresses],
        model_type=plan.description.model_type,
        blocks=plan.description.layout.block_count,
        arena_bytes=plan.description.layout.nbytes,
        ranks=list(plan.description.tp_ranks),
        incarnation=f"{core.incarnation:016x}",
    )
    try:
        yield
    finally:
        drain.begin(stop_within=config.drain_timeout)
        await drain.drained.wait()
        drain.over.set()
        streams.end(draining_error())
        await server.stop(drain.seconds_left)
        await supervisor.close()
        await listener.close()
        await processes.close()
        await copies.close()
        _log.info("stopped")


async def run(config: ServerConfig) -> None:
    """Serves until SIGTERM or SIGINT, or until a client has it drained and stopped.

    Raises:
        ValueError: The configuration cannot be.
        ArenaError: The memory cannot be had.
    """
    plan = Plan.of(config)
    for address in plan.addresses:
        address.refuse_if_served()
    stop = asyncio.Event()
    for signal_number in _STOP_SIGNALS:
        asyncio.get_running_loop().add_signal_handler(signal_number, stop.set)
    known = plan.description
    with contextlib.closing(
        Memory.open(
            known.layout,
            tp_ranks=known.tp_ranks,
            devices=known.devices,
            state_dir=plan.state_dir,
            engine=config.copy_engine,
            threads=config.copy_threads,
        )
    ) as memory:
        async with serving(config, plan, memory, stop):
            await stop.wait()
    for signal_number in _STOP_SIGNALS:  # a second signal must not turn a clean end into a death by signal
        asyncio.get_running_loop().remove_signal_handler(signal_number)
        signal.signal(signal_number, signal.SIG_IGN)


def _new_server(limits: Limits, max_connections: int) -> grpc.aio.Server:
    return grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", limits.max_message_bytes),
            ("grpc.max_send_message_length", limits.max_message_bytes),
            ("grpc.max_metadata_size", MAX_METADATA_BYTES),
            ("grpc.max_allowed_incoming_connections", max_connections),
            # One client may have all calls and all streams; what is beyond that waits in the client.
            ("grpc.max_concurrent_streams", 2 * limits.max_calls + 2 * limits.max_sessions),
            # A peer that is gone without a word is found out within a minute and a half.
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ("grpc.so_reuseport", 0),  # two servers on one port would each see half of the calls
        ]
    )


def _add_standard_services(server: grpc.aio.Server, health: Health) -> None:
    health_pb2_grpc.add_HealthServicer_to_server(health.servicer, server)
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
