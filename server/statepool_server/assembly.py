"""The parts of a server, put together; without addresses to listen on, and without anything running yet."""

from collections.abc import Mapping
from dataclasses import dataclass

from statepool_server.config import ServerConfig
from statepool_server.memory import Memory
from statepool_server.planning import Plan
from statepool_server.pool import Pool, PoolConfig
from statepool_server.service.admin_service import AdminService
from statepool_server.service.attach_processes import AttachedProcesses
from statepool_server.service.block_service import BlockService
from statepool_server.service.calls import Calls
from statepool_server.service.copying import CopyThreads
from statepool_server.service.core import Core
from statepool_server.service.pool_service import PoolService
from statepool_server.service.reaper import Reaper
from statepool_server.service.schedule_streams import ScheduleStreams
from statepool_server.service.sequence_service import SequenceService
from statepool_server.service.session_service import SessionService
from statepool_server.service.steps import Steps
from statepool_server.service.verifying import Verifier


@dataclass(frozen=True, slots=True)
class Assembly:
    """A server, ready to be started, or to run the acts of a journal again."""

    core: Core
    """What the services share."""
    calls: Calls
    """What every call goes through."""
    reaper: Reaper
    """Ends sessions."""
    verifier: Verifier
    """Compares checksums."""
    steps: Steps
    """Applies engine steps."""
    streams: ScheduleStreams
    """Open Schedule streams."""
    processes: AttachedProcesses
    """Attached processes."""
    servicers: Mapping[str, object]
    """Handlers by service name."""

    @classmethod
    def of(cls, config: ServerConfig, plan: Plan, memory: Memory) -> "Assembly":
        """Puts a server together.

        Args:
            config: The configuration.
            plan: What it comes to.
            memory: The open arenas; `Memory.none()` for a server that does no memory work.
        """
        copies = CopyThreads(config.copy_threads, config.max_queued_copies)
        core = Core(description=plan.description, limits=plan.limits, pool=_pool(plan), memory=memory, copies=copies)
        calls, reaper = Calls(), Reaper(core)
        verifier = Verifier(core, config.checksums, config.scrub_rate)
        steps, streams = Steps(core, calls.draining, verifier), ScheduleStreams(core, config.pressure)
        processes = AttachedProcesses(core, str(plan.attach_socket), config.attach_timeout, plan.state_dir)
        core.block_listeners.append(streams.blocks_changed)
        core.session_listeners += [streams.sessions_changed, lambda _ended: processes.fences_changed()]
        servicers = {
            "AdminService": AdminService(core, calls.counts, processes, verifier),
            "BlockService": BlockService(core, config.stall_timeout, verifier),
            "PoolService": PoolService(core, processes),
            "SequenceService": SequenceService(core, steps, streams),
            "SessionService": SessionService(core, reaper.lease_changed, calls.draining),
        }
        return cls(core, calls, reaper, verifier, steps, streams, processes, servicers)


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
        )
    )
