"""The parts of a server, put together; without addresses to listen on, and without anything running yet."""

import asyncio
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from statepool.v1 import admin_pb2, block_pb2, pool_pb2, sequence_pb2, session_pb2, transfer_pb2
from statepool_server.config import ServerConfig
from statepool_server.memory import Memory
from statepool_server.metrics.exposition import Exposition
from statepool_server.metrics.metric import Sources
from statepool_server.nixl_agent import NixlAgent
from statepool_server.page.status import Status
from statepool_server.planning import Plan
from statepool_server.pool import Pool, PoolConfig
from statepool_server.service.admin_service import AdminService
from statepool_server.service.attach_processes import AttachedProcesses
from statepool_server.service.block_news import BlockNews
from statepool_server.service.block_service import BlockService
from statepool_server.service.calls import Calls
from statepool_server.service.copying import CopyThreads
from statepool_server.service.core import Core
from statepool_server.service.draining import Drain
from statepool_server.service.health import Health
from statepool_server.service.heartbeat import Heartbeat
from statepool_server.service.nixl_thread import NixlThread
from statepool_server.service.path_choice import PathChoice
from statepool_server.service.peers import Peers
from statepool_server.service.pool_service import PoolService
from statepool_server.service.reaper import Reaper
from statepool_server.service.receiving import Receiver
from statepool_server.service.schedule_streams import ScheduleStreams
from statepool_server.service.sequence_service import SequenceService
from statepool_server.service.session_service import SessionService
from statepool_server.service.stalls import Stalls
from statepool_server.service.steps import Steps
from statepool_server.service.supervision import Supervisor
from statepool_server.service.transfer_service import TransferService
from statepool_server.service.verifying import Verifier
from statepool_server.service.watchers import Watchers
from statepool_server.sessions import ids_before
from statepool_server.tracing import NO_TRACING, Tracing

DESCRIPTORS = {
    name: module.DESCRIPTOR.services_by_name[name]
    for name, module in {
        "AdminService": admin_pb2,
        "BlockService": block_pb2,
        "PoolService": pool_pb2,
        "SequenceService": sequence_pb2,
        "SessionService": session_pb2,
        "TransferService": transfer_pb2,
    }.items()
}
"""Descriptors of the services, by name."""


@dataclass(frozen=True, slots=True)
class Assembly:
    """A server, ready to be started, or to run the acts of a journal again."""

    core: Core
    """What the services share."""
    calls: Calls
    """What every call goes through."""
    health: Health
    """Readiness and liveness."""
    supervisor: Supervisor
    """What works in the background."""
    heartbeat: Heartbeat
    """Measures the event loop."""
    drain: Drain
    """The way down."""
    reaper: Reaper
    """Ends sessions."""
    verifier: Verifier
    """Compares checksums."""
    steps: Steps
    """Applies engine steps."""
    streams: ScheduleStreams
    """Open Schedule streams."""
    watchers: Watchers
    """Open WatchBlocks streams."""
    processes: AttachedProcesses
    """Attached processes."""
    metrics: Exposition
    """What all these tell of themselves in numbers."""
    status: Status
    """What they show on the status page."""
    peers: Peers
    """Connections to other servers."""
    nixl: NixlThread | None
    """Makes the NIXL calls; None: there is no NIXL."""
    servicers: Mapping[str, object]
    """Handlers by service name."""

    @classmethod
    def of(
        cls, config: ServerConfig, plan: Plan, memory: Memory, stop: asyncio.Event, tracing: Tracing = NO_TRACING
    ) -> "Assembly":
        """Puts a server together.

        Args:
            config: The configuration.
            plan: What it comes to.
            memory: The open arenas; `Memory.none()` for a server that does no memory work.
            stop: Set when a client has had the server drained and wants its end.
            tracing: Is told of calls, steps and memory work.
        """
        copies = CopyThreads(config.copy_threads, config.max_queued_copies, tracing)
        core = Core(
            description=plan.description,
            limits=plan.limits,
            pool=_pool(plan),
            memory=memory,
            copies=copies,
            access=plan.access,
            tracing=tracing,
        )
        health = Health(descriptor.full_name for descriptor in DESCRIPTORS.values())
        supervisor, heartbeat, stalls = Supervisor(health.not_ready), Heartbeat(), Stalls(config.stall_timeout)
        drain = Drain(core, health, stop)
        calls, reaper = Calls(core, drain.begun), Reaper(core)
        verifier = Verifier(core, config.checksums, config.scrub_rate)
        steps, streams = Steps(core, drain.begun, verifier), ScheduleStreams(core, config.pressure, stalls)
        processes = AttachedProcesses(core, str(plan.attach_socket), config.attach_timeout, plan.state_dir)
        watchers = Watchers(core, BlockNews(core.pool, config.watch_bytes), stalls)
        peers = Peers(plan.peers)
        core.block_listeners += [streams.blocks_changed, drain.progressed]
        drain.on_begin.append(streams.going_away)
        core.session_listeners += [streams.sessions_changed, processes.fences_changed]
        nixl = None if config.nixl_devices is None else _nixl(core, config.nixl_devices)
        choice = PathChoice(core, nixl, config.data_path, config.stall_timeout)
        receiver = Receiver(core, peers, choice, config.stall_timeout)
        sources = Sources(core, calls, steps, watchers, health, supervisor, heartbeat, drain, choice)
        metrics = Exposition(sources)
        servicers = {
            "AdminService": AdminService(
                core,
                counts=calls.counts,
                processes=processes,
                verifier=verifier,
                parts=supervisor.parts,
                metrics=metrics.samples,
                heartbeat=heartbeat,
                drain=drain,
                drain_timeout=config.drain_timeout,
            ),
            "BlockService": BlockService(core, stalls, verifier),
            "PoolService": PoolService(core, processes, watchers),
            "SequenceService": SequenceService(core, steps, streams, stalls),
            "SessionService": SessionService(core, reaper.lease_changed, stalls),
            "TransferService": TransferService(core, reaper.lease_changed, stalls, receiver, nixl),
        }
        return cls(
            core=core,
            calls=calls,
            health=health,
            supervisor=supervisor,
            heartbeat=heartbeat,
            drain=drain,
            reaper=reaper,
            verifier=verifier,
            steps=steps,
            streams=streams,
            watchers=watchers,
            processes=processes,
            metrics=metrics,
            status=Status(sources),
            peers=peers,
            nixl=nixl,
            servicers=servicers,
        )


def _nixl(core: Core, devices: str) -> NixlThread:
    known = core.description

    def open_agent() -> NixlAgent:
        arenas = list(zip(known.tp_ranks, core.memory.arenas(), strict=True))
        return NixlAgent(f"statepool/{uuid.uuid4()}", arenas, known.layout.block.image_bytes, devices)

    return NixlThread(open_agent)


def _pool(plan: Plan) -> Pool:
    known, limits = plan.description, plan.limits
    return Pool(
        PoolConfig(
            block_count=known.layout.block_count,
            block_tokens=known.block_tokens,
            max_sessions=limits.max_sessions,
            num_spec=known.num_spec,
            max_sequences=limits.max_sequences,
            max_attachments=limits.max_attachments,
            max_transfers=limits.max_transfers,
            last_session_id=ids_before(time.monotonic_ns()),
        )
    )
