"""AdminService: for operators."""

import os
import platform
from collections import Counter
from importlib.metadata import version

from statepool.v1 import admin_pb2 as pb
from statepool_server import convert
from statepool_server.service.attach_processes import AttachedProcesses
from statepool_server.service.calls import Context
from statepool_server.service.core import Core


class AdminService:
    """Handlers of ``statepool.v1.AdminService``."""

    def __init__(self, core: Core, counts: Counter[tuple[str, str]], processes: AttachedProcesses) -> None:
        self._core = core
        self._processes = processes
        self._counts = counts

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
        )

    async def ReleaseQuarantine(
        self, request: pb.ReleaseQuarantineRequest, _context: Context
    ) -> pb.ReleaseQuarantineResponse:
        """Ends quarantine on the operator's word."""
        cleared = self._processes.release_quarantine(request.attachment_id)
        return pb.ReleaseQuarantineResponse(incarnation=self._core.incarnation, cleared_blocks=cleared)
