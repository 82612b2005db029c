"""AdminService: for operators."""

import os
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version

from prometheus_client.samples import Sample

from statepool.errors import BadFieldError
from statepool.v1 import admin_pb2 as pb
from statepool.wire import refs_to_wire
from statepool_server import convert
from statepool_server.service.attach_processes import AttachedProcesses
from statepool_server.service.calls import Context
from statepool_server.service.core import Core
from statepool_server.service.draining import Drain
from statepool_server.service.heartbeat import Heartbeat
from statepool_server.service.supervision import Part
from statepool_server.service.verifying import Verifier


class AdminService:
    """Handlers of ``statepool.v1.AdminService``."""

    def __init__(
        self,
        core: Core,
        *,
        counts: Counter[tuple[str, str]],
        processes: AttachedProcesses,
        verifier: Verifier,
        parts: Sequence[Part],
        metrics: Callable[[], Iterable[Sample]],
        heartbeat: Heartbeat,
        drain: Drain,
        drain_timeout: float,
    ) -> None:
        """Builds the handlers.

        Args:
            core: What the services share.
            counts: Calls answered, by full method name and status code.
            processes: Attached processes.
            verifier: Compares checksums.
            parts: What works in the background.
            metrics: Reads every metric.
            heartbeat: Measures the event loop.
            drain: The way down.
            drain_timeout: Seconds that sequences have to finish when nobody says otherwise.
        """
        self._core = core
        self._verifier = verifier
        self._counts = counts
        self._processes = processes
        self._parts = parts
        self._metrics = metrics
        self._heartbeat = heartbeat
        self._drain = drain
        self._drain_timeout = drain_timeout

    async def GetServerInfo(self, _request: pb.GetServerInfoRequest, _context: Context) -> pb.GetServerInfoResponse:
        """Tells what this process is."""
        core = self._core
        return pb.GetServerInfoResponse(
            incarnation=core.incarnation,
            version=version("statepool"),
            pid=os.getpid(),
            start_time=convert.timestamp(core.started_ns),
            uptime=convert.duration(core.uptime_ns),
            runtime_versions={"python": platform.python_version()}
            | {name: version(name) for name in ("grpcio", "protobuf", "torch")},
            continued_incarnations=sorted(core.continued_incarnations),
            calls={f"{method}:{code}": count for (method, code), count in self._counts.items()},
            background=[
                pb.BackgroundPart(name=part.name, is_running=not part.failure, failure=part.failure)
                for part in self._parts
            ],
            loop_lag=convert.duration(round(self._heartbeat.lag * 1e9)),
            is_draining=self._drain.begun.is_set(),
        )

    async def GetMetrics(self, _request: pb.GetMetricsRequest, _context: Context) -> pb.GetMetricsResponse:
        """Tells all numbers."""
        samples = (
            pb.MetricSample(name=name, labels=labels, value=value) for name, labels, value, *_ in self._metrics()
        )
        return pb.GetMetricsResponse(incarnation=self._core.incarnation, samples=samples)

    async def VerifyIntegrity(
        self, _request: pb.VerifyIntegrityRequest, _context: Context
    ) -> pb.VerifyIntegrityResponse:
        """Compares every committed block with its checksum."""
        report = await self._verifier.verify_all()
        return pb.VerifyIntegrityResponse(
            incarnation=self._core.incarnation,
            verified_blocks=report.verified,
            unverified_blocks=report.unverified,
            condemned=refs_to_wire(report.condemned),
            condemned_blocks=self._core.pool.blocks.condemned_count,
        )

    async def ReleaseQuarantine(
        self, request: pb.ReleaseQuarantineRequest, _context: Context
    ) -> pb.ReleaseQuarantineResponse:
        """Ends quarantine on the operator's word."""
        if not request.condemned:
            cleared = self._processes.release_quarantine(request.attachment_id)
        elif request.attachment_id:
            raise BadFieldError("condemned blocks wait for no attachment", field="attachment_id")
        else:
            cleared = self._verifier.pardon()
        return pb.ReleaseQuarantineResponse(incarnation=self._core.incarnation, cleared_blocks=cleared)

    async def Drain(self, request: pb.DrainRequest, _context: Context) -> pb.DrainResponse:
        """Takes the server out of service."""
        grace = self._drain_timeout
        if request.HasField("grace"):
            grace = convert.duration_ns(request.grace, "grace") / 1e9
        self._drain.begin(stop_within=grace if request.stop else None)
        await self._drain.wait(grace)
        usage = self._core.pool.usage()
        return pb.DrainResponse(incarnation=self._core.incarnation, sequences=usage.sequences, sessions=usage.sessions)
